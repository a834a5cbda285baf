"""Manifests: one JSON object a line, audio paths relative to the manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.listed import ListedSource
from uniaudio.errors import UserError


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one object per non-empty line.

    Raises:
        UserError: naming the file and the line.
    """
    rows = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read ({problem})") from problem
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as problem:
            raise UserError(f"{path}: line {number}: not JSON ({problem})") from problem
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: must be one object")
        rows.append(row)
    return rows


class JsonlSource(ListedSource):
    """A manifest file, or a folder with ``manifest.jsonl`` (``<name>.jsonl`` for a stored split of that name)."""

    def __init__(self, card: DatasetCard, split: str) -> None:
        path = Path(card.load.location)
        if path.is_dir():
            named = path / f"{card.split(split).name}.jsonl"
            path = named if named.is_file() else path / "manifest.jsonl"
        if not path.is_file():
            raise UserError(f"{card.path}: load.jsonl: there is no manifest {path}")
        rows = [(str(row.get("audio", number)), row) for number, row in enumerate(read_jsonl(path))]
        super().__init__(card, split, rows, path.parent)
