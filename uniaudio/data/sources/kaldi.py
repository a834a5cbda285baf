"""Kaldi data folders: ``wav.scp`` with ``segments``, ``text`` and ``utt2spk`` where they are there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.source import Row
from uniaudio.data.sources.listed import ListedSource
from uniaudio.data.sources.manifest import read_lines
from uniaudio.data.sources.places import folder_of_split
from uniaudio.errors import RowError, UserError

START, END = "segment_start", "segment_end"


def read_pairs(path: Path, least: int = 2) -> Iterator[tuple[int, str, str]]:
    """Yield (line number, first word, rest of the line).

    Raises:
        UserError: naming file and line where there are fewer than ``least`` words, or a first word comes again.
    """
    seen = set()
    for number, line in read_lines(path):
        key, *rest = line.split(maxsplit=1)
        if len(line.split(maxsplit=least - 1)) < least:
            raise UserError(f"{path}: line {number}: needs at least {least} words, has {line!r}")
        if key in seen:
            raise UserError(f"{path}: line {number}: '{key}' stands in a line before")
        seen.add(key)
        yield number, key, rest[0] if rest else ""


class KaldiSource(ListedSource):
    """The utterances of a data folder (or of its sub-folder with the stored split's name).

    Columns: ``id``, ``recording``, ``text``, ``speaker`` (from ``utt2spk``), and for every other ``utt2<name>`` the
    column ``<name>``. Paths are relative to the folder. Recordings that are commands (``sox ... |``) are refused:
    nothing from data is run.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        folder = folder_of_split(card, split, self.left_out)
        recordings = {}
        for number, key, path in read_pairs(folder / "wav.scp"):
            if path.endswith("|"):
                raise UserError(
                    f"{folder / 'wav.scp'}: line {number}: {key} is a command; write the audio to a file, "
                    f"commands from data are not run"
                )
            recordings[key] = path
        rows = utterances(folder, recordings)
        for extra in sorted(folder.glob("utt2*")):
            name = {"spk": "speaker"}.get(extra.name.removeprefix("utt2"), extra.name.removeprefix("utt2"))
            for _, key, value in read_pairs(extra):
                if key in rows:
                    rows[key][name] = value
        if (folder / "text").is_file():
            for _, key, value in read_pairs(folder / "text", least=1):
                if key in rows:
                    rows[key]["text"] = value
        (audio,) = card.audio if len(card.audio) == 1 else ("audio",)
        listed = [(key, {"id": key, **columns, audio: columns["path"]}) for key, columns in rows.items()]
        super().__init__(card, split, listed, folder)

    def row(self, index: int) -> Row:
        row = super().row(index)
        if START not in row.columns:
            return row
        start, end = float(row.columns[START]), float(row.columns[END])
        if end <= start:
            raise RowError("empty audio", f"{row.key}: from {start:g} to {end:g} s")
        return replace(row, audio=tuple(replace(ref, span=(start, end)) for ref in row.audio))


def utterances(folder: Path, recordings: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Return the columns of every utterance: those of ``segments``, else one for each recording."""
    segments = folder / "segments"
    if not segments.is_file():
        return {key: {"recording": key, "path": path} for key, path in recordings.items()}
    rows: dict[str, dict[str, Any]] = {}
    for number, key, rest in read_pairs(segments, least=4):
        recording, start, end, *channel = rest.split()
        if channel:
            raise UserError(
                f"{segments}: line {number}: names a channel; write the channels to files of their own"
            )
        if recording not in recordings:
            raise UserError(f"{segments}: line {number}: wav.scp has no recording '{recording}'")
        try:
            times = {START: float(start), END: float(end)}
        except ValueError:
            times = {START: math.nan}
        if not all(map(math.isfinite, times.values())):
            raise UserError(f"{segments}: line {number}: times must be seconds, got {start} {end}")
        rows[key] = {"recording": recording, "path": recordings[recording], **times}
    return rows
