"""Kaldi data folders: ``wav.scp`` with ``segments``, ``text`` and ``utt2spk`` where they are there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.in_memory import ListedSource
from uniaudio.data.sources.manifest import read_lines
from uniaudio.data.sources.split_files import find_split_folder
from uniaudio.errors import RowError

START, END = "segment_start", "segment_end"
REST_OF_RECORDING = -1  # as the end of a segment
Columns = dict[str, Any]


class KaldiSource(ListedSource):
    """The utterances of a data folder (or of its sub-folder with the stored split's name).

    Columns: ``id``, ``recording``, ``text``, ``speaker`` (from ``utt2spk``), and for every other ``utt2<name>`` the
    column ``<name>``. Paths are relative to the folder. Recordings that are commands (``sox ... |``) cannot be used:
    nothing from data is run. A line that cannot be used costs its utterance, or where it is of a column alone those
    that need the column.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        folder = find_split_folder(card, split, self.left_out)
        (audio,) = card.audio if len(card.audio) == 1 else ("audio",)
        rows = list(read_utterances(folder))
        usable: dict[str, Columns] = {}
        for key, columns in rows:
            if not isinstance(columns, RowError):
                usable[key] = columns
                columns |= {"id": key, audio: columns["path"]}
        for file, least in [*((extra, 2) for extra in sorted(folder.glob("utt2*"))), (folder / "text", 1)]:
            name = file.name.removeprefix("utt2")
            for _, key, value in read_pairs(file, least) if file.is_file() else ():
                if key in usable:
                    usable[key][{"spk": "speaker"}.get(name, name)] = value
        super().__init__(card, split, rows, folder)

    def row(self, index: int) -> Row:
        row = super().row(index)
        if START not in row.columns:
            return row
        start, end = float(row.columns[START]), float(row.columns[END])
        if end == REST_OF_RECORDING:
            end = row.audio[0].read_seconds()
        if end <= start:
            raise RowError("empty audio", f"{row.key}: from {start:g} to {end:g} s")
        return replace(row, audio=tuple(replace(ref, span=(start, end)) for ref in row.audio))


def read_pairs(path: Path, least: int = 2) -> Iterator[tuple[int, str, str | RowError]]:
    """Yield (line number, first word, rest of the line or why the line cannot be used).

    Args:
        least: number of words that a line needs.

    Raises:
        UserError: when the file cannot be read.
    """
    seen = set()
    for number, line in read_lines(path):
        key, *rest = line.split(maxsplit=1)
        if len(line.split(maxsplit=least - 1)) < least:
            yield number, key, make_line_error(path, number, f"needs at least {least} words, has {line!r}")
        elif key in seen:
            yield number, key, make_line_error(path, number, f"'{key}' is already in an earlier line")
        else:
            yield number, key, rest[0] if rest else ""
        seen.add(key)


def make_line_error(path: Path, number: int, problem: str) -> RowError:
    return RowError("broken metadata", f"{path}: line {number}: {problem}")


def read_recordings(path: Path) -> Iterator[tuple[str, str | RowError]]:
    """Yield (name, path) of the recordings in ``wav.scp``."""
    for number, key, place in read_pairs(path):
        if isinstance(place, str) and place.endswith("|"):
            fix = "write the audio to a file; commands in data are not run"
            yield key, make_line_error(path, number, f"{key} is a command; {fix}")
        else:
            yield key, place


def read_utterances(folder: Path) -> Iterator[tuple[str, Columns | RowError]]:
    """Yield (name, columns) of every utterance: those of ``segments``, else one for each recording.

    Raises:
        UserError: when ``wav.scp`` or ``segments`` cannot be read.
    """
    segments = folder / "segments"
    recordings: dict[str, str | RowError] = {}
    for key, place in read_recordings(folder / "wav.scp"):
        if not segments.is_file():
            yield key, place if isinstance(place, RowError) else {"recording": key, "path": place}
        elif key in recordings and isinstance(place, RowError):  # the recording of the line before is used
            yield key, place
        recordings.setdefault(key, place)
    for number, key, rest in read_pairs(segments, least=4) if segments.is_file() else ():
        try:
            yield key, rest if isinstance(rest, RowError) else parse_segment(rest.split(), recordings)
        except ValueError as problem:
            yield key, make_line_error(segments, number, str(problem))


def parse_segment(words: list[str], recordings: dict[str, str | RowError]) -> Columns | RowError:
    """Return the columns of a line of ``segments``, or why its recording cannot be used.

    Raises:
        ValueError: saying what is wrong with the line.
    """
    recording, start, end, *channel = words
    if channel:
        raise ValueError("names a channel; write the channels to files of their own")
    if recording not in recordings:
        raise ValueError(f"wav.scp has no recording '{recording}'")
    place = recordings[recording]
    if isinstance(place, RowError):
        return place
    try:
        times = {START: float(start), END: float(end)}
    except ValueError:
        times = {START: math.nan}
    if not all(map(math.isfinite, times.values())):
        raise ValueError(f"times must be seconds, got {start} {end}")
    return {"recording": recording, "path": place, **times}
