"""Manifests: JSON lines and tables with a header, audio paths relative to the file or inside a tar."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson  # a million lines in half a second, where `json` takes three

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.listed import ListedSource
from uniaudio.data.sources.places import refuse_other_splits
from uniaudio.errors import UserError

# by suffix; tabs cannot stand in a field of a .tsv, so quotes are text there, as speech corpora write them
FORMATS: dict[str, dict[str, Any]] = {
    ".csv": {"delimiter": ",", "strict": True},
    ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE},
}


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of the lines that are not empty.

    Cut at line ends alone: ``str.splitlines`` would also cut at signs that may stand in a transcript.

    Raises:
        UserError: when the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{path}: cannot be read ({problem})") from problem
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield number, line.strip()


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one object per non-empty line.

    Raises:
        UserError: naming the file and the line.
    """
    rows = []
    for number, line in read_lines(path):
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as problem:
            raise UserError(f"{path}: line {number}: not JSON ({problem})") from problem
        if not isinstance(row, dict):
            raise UserError(f"{path}: line {number}: must be one object")
        rows.append(row)
    return rows


def read_table(path: Path) -> list[dict[str, Any]]:
    """Read a table whose first line names the columns; ``.tsv`` is cut at tabs and knows no quotes.

    Raises:
        UserError: naming the file and the line.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, **FORMATS.get(path.suffix.lower(), FORMATS[".csv"]))
            rows = []
            for row in reader:
                if None in row or None in row.values():
                    raise UserError(
                        f"{path}: line {reader.line_num}: has {'more' if None in row else 'fewer'} fields than "
                        f"the header's {len(reader.fieldnames or ())}"
                    )
                rows.append(row)
    except (OSError, UnicodeDecodeError, csv.Error) as problem:
        raise UserError(f"{path}: cannot be read ({problem})") from problem
    return rows


def manifest_file(card: DatasetCard, split: str, suffixes: tuple[str, ...]) -> Path:
    """Return the manifest itself, or the one in a folder: that of the stored split, else ``manifest``.

    Raises:
        UserError: when there is no such file or split.
    """
    path = Path(card.load.location)
    if path.is_dir():
        for name in (card.split(split).name, "manifest"):
            for suffix in suffixes:
                if (path / f"{name}{suffix}").is_file():
                    return path / f"{name}{suffix}"
        path = path / f"manifest{suffixes[0]}"
    if not path.is_file():
        raise UserError(f"{card.path}: load.{card.load.kind}: there is no manifest {path}")
    if path.stem != card.split(split).name:
        refuse_other_splits(card, split)
    return path


class JsonlSource(ListedSource):
    """A manifest file, or a folder with ``manifest.jsonl`` (``<name>.jsonl`` for a stored split of that name)."""

    def __init__(self, card: DatasetCard, split: str) -> None:
        path = manifest_file(card, split, (".jsonl",))
        super().__init__(card, split, keyed(read_jsonl(path), card), path.parent)


class CsvSource(ListedSource):
    """A table, or a folder with ``manifest.csv`` (or ``.tsv``; ``<name>.csv`` for a stored split of that name)."""

    def __init__(self, card: DatasetCard, split: str) -> None:
        path = manifest_file(card, split, (".csv", ".tsv"))
        rows = read_table(path)
        for row in rows:
            row.update(stated_length(row))
        super().__init__(card, split, keyed(rows, card), path.parent)


def stated_length(row: Mapping[str, str]) -> dict[str, float]:
    """Return the one column of a table that is a number to us, so that it spares a look at the audio's header."""
    try:
        return {"duration": float(row["duration"])}
    except (KeyError, ValueError):
        return {}


def keyed(rows: list[dict[str, Any]], card: DatasetCard) -> list[tuple[str, dict[str, Any]]]:
    """Name rows by their first clip, and by their number where that is no plain path."""
    found = []
    for number, row in enumerate(rows):
        clip = row.get(card.audio[0])
        if isinstance(clip, dict) and "offset" in clip:
            clip = row.get("key")
        found.append((clip if isinstance(clip, str) else str(number), row))
    return found
