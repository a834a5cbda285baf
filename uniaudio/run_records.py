"""What a run folder holds: the folders of its checkpoints, and its records, one JSON object a line.

A killed process, a full disk or an editor leave lines of ``metrics.jsonl`` and ``skipped.jsonl`` that are no records.
Readers count these and go on.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STEP = re.compile(r"step-\d{6,15}")  # what else somebody puts beside the checkpoints is left alone
NUMBERS = ("audio_seconds", "seconds", "data_wait_share", "memory_gib", "processes")
TEXTS = ("event", "stage")
TABLES = ("tasks", "choices", "drawn", "lr", "results")


def list_step_folders(folder: Path) -> list[Path]:
    """Return the checkpoints, whole or not, by their step (the names sort otherwise from a million steps on)."""
    return sorted((path for path in folder.glob("step-*") if STEP.fullmatch(path.name)), key=parse_step)


def parse_step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def parse_record(line: str) -> dict[str, Any] | None:
    """Return the JSON object of a line, or None for a line that holds none. Numbers that are not finite become None."""
    try:
        row = json.loads(line, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def read_objects(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the JSON objects of a file and how many of its lines hold none; of no file, nothing.

    Raises:
        OSError: when there is a file, but it cannot be read.
    """
    if not path.is_file():
        return [], 0
    lines = path.read_text(encoding="utf-8", errors="replace").removesuffix("\n").split("\n")
    rows = [parse_record(line) for line in lines] if lines != [""] else []
    return [row for row in rows if row is not None], rows.count(None)


def read_metrics(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the rows of a ``metrics.jsonl`` and how many of its lines are none, as ``read_objects`` does.

    Every row has a ``step``, and what readers compute with is of the right kind.
    """
    rows, bad = read_objects(path)
    usable = [row for row in map(clean_metrics, rows) if row is not None]
    return usable, bad + len(rows) - len(usable)


def clean_metrics(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a row without what could not be computed, or None where a value is of another kind than it has to be."""
    if not is_count(row.get("step")):
        return None
    clean = {key: value for key, value in row.items() if value is not None or key in ("loss", "grad_norm")}
    fits = (
        all(is_number(clean[key]) for key in NUMBERS if key in clean)
        and all(isinstance(clean[key], str) for key in TEXTS if key in clean)
        and all(isinstance(clean[key], dict) for key in TABLES if key in clean)
        and (clean.get("loss") is None or is_number(clean["loss"]))
        and all(is_number(value) for value in clean.get("tasks", {}).values())
        and all(is_count(value) for value in clean.get("drawn", {}).values())
        and all(isinstance(value, dict) for value in clean.get("choices", {}).values())
        and all(is_number(v) for shares in clean.get("choices", {}).values() for v in shares.values())
        and all(isinstance(value, dict) for value in clean.get("results", {}).values())
        and isinstance(clean.get("broken", []), list)
        and ("stage" in clean or clean.get("event") != "stage")
    )
    return clean if fits else None


def has_reached_end(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the rows of a run tell of its end, and of no step after it: a finished run can be continued."""
    ends = [row["step"] for row in rows if row.get("event") == "finished"]
    return bool(ends) and max(ends) >= max(row["step"] for row in rows)


def describe_undefined_scores(name: str, result: Mapping[str, Any]) -> list[str]:
    """Say why metrics of an evaluation set or a probed task are undefined, and models have no scores of the task."""
    undefined, unscored = result.get("undefined", {}), result.get("not_scored", {})
    return [
        *(f"{name}: {metric} is undefined: {reason}" for metric, reason in undefined.items()),
        *(f"{name}: {model} is not scored: {reason}" for model, reason in unscored.items()),
    ]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
