"""What a run folder tells: training rows, events, config, results, how the run ended and what it cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniaudio.config.strict_yaml import parse
from uniaudio.errors import UserError
from uniaudio.run_records import has_reached_end, is_count, list_step_folders, read_metrics, read_objects


@dataclass(frozen=True)
class RunRecord:
    """One run, read from its folder alone.

    Args:
        rows: training rows of ``metrics.jsonl``, steps that were left out included. events: its other rows.
        torn: lines of it that are no JSON: a killed process leaves half a line.
        config: the resolved config as plain values; empty where the folder has none.
        skipped: ``{source: {reason: rows}}`` of ``skipped.jsonl``.
        bases: ``bases.json`` of the newest checkpoint: what the run started from.
    """

    name: str
    folder: Path
    rows: Sequence[Mapping[str, Any]]
    events: Sequence[Mapping[str, Any]]
    torn: int
    config: Mapping[str, Any]
    config_text: str
    skipped: Mapping[str, Mapping[str, int]]
    bases: Mapping[str, Mapping[str, str]]

    @property
    def last_step(self) -> int:
        """The last step that any row tells of; 0 before the first."""
        return max((int(row.get("step", 0)) for row in (*self.rows, *self.events)), default=0)

    @property
    def drawn(self) -> Mapping[str, int]:
        """Rows drawn by source up to the last checkpoint that says so."""
        saved = [event["drawn"] for event in self.events if event["event"] == "saved" and "drawn" in event]
        return saved[-1] if saved else {}

    @property
    def is_finished(self) -> bool:
        return has_reached_end([*self.rows, *self.events])

    @property
    def planned_steps(self) -> int | None:
        """Steps of all stages as the config has them; None where hours of audio end one, or without a config."""
        steps = [stage.get("steps") for stage in self.config.get("stages", ())]
        if not steps or None in steps:
            return None
        most = self.config.get("train", {}).get("max_steps")
        return min(sum(steps), most or sum(steps))


def read_run(folder: Path, name: str) -> RunRecord:
    """Read a run folder; the page calls the run by ``name``.

    Raises:
        UserError: when it holds no ``metrics.jsonl``, or its config is not YAML.
    """
    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise UserError(f"{folder} holds no metrics.jsonl; give the output_dir of a run")
    lines, torn = read_metrics(metrics)
    config_file = folder / "config.yaml"
    text = config_file.read_text(encoding="utf-8") if config_file.is_file() else ""
    config = parse(text, str(config_file)) if text else {}
    skips, _ = read_objects(folder / "skipped.jsonl")
    skipped: dict[str, Counter[str]] = {}
    for skip in skips:
        skipped.setdefault(str(skip.get("source")), Counter())[str(skip.get("reason"))] += (
            max(1, skip["rows"]) if is_count(skip.get("rows")) else 1
        )
    bases = [path / "bases.json" for path in list_step_folders(folder / "checkpoints")]
    newest = next((path for path in reversed(bases) if path.is_file()), None)
    return RunRecord(
        name=name,
        folder=folder,
        rows=[row for row in lines if "event" not in row],
        events=[row for row in lines if "event" in row],
        torn=torn,
        config=config if isinstance(config, dict) else {},
        config_text=text,
        skipped=skipped,
        bases={} if newest is None else read_json(newest),
    )


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UserError: when it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise UserError(f"{path}: cannot be read as JSON ({problem})") from problem


def describe_ending(run: RunRecord) -> str:
    """Say in one sentence where and why a run ended that did not finish; nothing of one that did."""
    if run.is_finished:
        return ""
    planned = f" of {run.planned_steps}" if run.planned_steps else ""
    where = f"step {run.last_step}{planned}"
    guards = [event for event in run.events if event["event"] == "guard" and event.get("broken")]
    last = run.events[-1] if run.events else {}
    if last.get("event") == "stopped":
        broken = "; ".join(guards[-1]["broken"]) if guards and guards[-1]["step"] == last["step"] else ""
        why = f"its guard ended it ({broken})" if broken else "it was stopped"
        return f"{run.name} is not finished: {why} after {where}; --resume continues it."
    half = ", and the last line of metrics.jsonl is incomplete" if run.torn else ""
    left_out = count_trailing_skips(run)
    bad = (
        f" Its last {left_out} steps were skipped because of their loss or gradient." if left_out > 1 else ""
    )
    return (
        f"{run.name} is not finished: metrics.jsonl records no end after {where}{half}, so the "
        f"process is still running, was killed or failed.{bad}"
    )


def count_trailing_skips(run: RunRecord) -> int:
    """Return how many of the last steps in a row were left out."""
    steps = {event["step"] for event in run.events if event["event"] == "left_out"}
    count = 0
    while run.last_step - count in steps:
        count += 1
    return count


@dataclass(frozen=True)
class Cost:
    """What a run took. Hours are None where it has no rows.

    Args:
        audio_hours: of audio trained on. wall_hours: of training, evaluation between steps included.
        processes: most of them at a time. audio_rate: seconds of audio per second of training.
        data_wait: share of the time that the loop waited for data, mean over rows. memory_gib: peak.
        rows_drawn: of all sources. rows_skipped: of all sources. steps_left_out: for their loss or gradient.
    """

    steps: int
    audio_hours: float | None
    wall_hours: float | None
    processes: int
    audio_rate: float | None
    data_wait: float | None
    memory_gib: float | None
    rows_drawn: int | None
    rows_skipped: int
    steps_left_out: int

    @property
    def process_hours(self) -> float | None:
        """Hours times processes: GPU-hours where each process has a GPU."""
        return None if self.wall_hours is None else self.wall_hours * self.processes


def compute_cost(run: RunRecord) -> Cost:
    """Add up what a run took, by the rows of its metrics."""
    audio, wall = (sum(row.get(key, 0.0) for row in run.rows) for key in ("audio_seconds", "seconds"))
    waits = [row["data_wait_share"] for row in run.rows if "data_wait_share" in row]
    memory = [row["memory_gib"] for row in run.rows if "memory_gib" in row]
    return Cost(
        steps=run.last_step,
        audio_hours=audio / 3600 if run.rows else None,
        wall_hours=wall / 3600 if run.rows else None,
        processes=max((e.get("processes", 1) for e in run.events if e["event"] == "stage"), default=1),
        audio_rate=audio / wall if wall else None,
        data_wait=sum(waits) / len(waits) if waits else None,
        memory_gib=max(memory, default=None),
        rows_drawn=sum(run.drawn.values()) if run.drawn else None,
        rows_skipped=sum(sum(reasons.values()) for reasons in run.skipped.values()),
        steps_left_out=sum(event["event"] == "left_out" for event in run.events),
    )
