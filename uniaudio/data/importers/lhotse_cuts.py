"""Lhotse: files of cuts become manifests, each row with its recording, offset and duration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uniaudio.data.importers.base import (
    ImportedData,
    ImportOptions,
    convert_json_lines,
    find_recording,
    list_sources,
)
from uniaudio.data.importers.json_rows import read_json_rows
from uniaudio.errors import RowError, convert_to_row_error


def read_lhotse_cuts(source: Path, options: ImportOptions) -> ImportedData:
    """Read cuts (`*.jsonl`, `*.jsonl.gz`), one file or a folder; a cut is one row, its supervisions one text."""
    listed = list_sources(source, (".jsonl", ".jsonl.gz"), "file of cuts")
    # manifests of recordings and supervisions lie beside cuts
    files = [file for file in listed if "recordings" not in file.name and "supervisions" not in file.name]
    return convert_json_lines(files, read_cuts, "cut", "usable cut", options)


def read_cuts(file: Path, root: str | None, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the cuts of a file, see ``convert_json_lines``."""
    for cut in read_json_rows(file, skipped):
        try:
            with convert_to_row_error("not a cut of Lhotse", str(cut.get("id"))):
                row = make_cut_row(cut, file.parent, root)
        except RowError as problem:
            skipped[problem.reason] += 1
        else:
            yield row


def leave_out_padding(cut: dict[str, Any]) -> dict[str, Any]:
    """Return the only cut that a padded one consists of beside silence; any other cut as it is."""
    tracks = [track.get("cut") for track in cut.get("tracks") or () if isinstance(track, dict)]
    inner = [each for each in tracks if isinstance(each, dict) and each.get("type") != "PaddingCut"]
    if cut.get("type") != "MixedCut" or len(inner) != 1 or len(inner) == len(tracks):
        return cut
    return {**inner[0], "id": cut.get("id", inner[0].get("id"))}


def make_cut_row(cut: dict[str, Any], folder: Path, root: str | None) -> dict[str, Any]:
    """Return the row of a cut.

    Args:
        folder: that paths may be relative to. root: the same, as the user states it.

    Raises:
        RowError: for a cut that is not one piece of one recording on disk as it is there.
    """
    cut = leave_out_padding(cut)
    recording = cut.get("recording")
    if cut.get("type", "MonoCut") not in ("MonoCut", "MultiCut") or not isinstance(recording, dict):
        raise RowError("not a part of one recording (a mixture, or only features)")
    if recording.get("transforms"):
        raise RowError(
            "its recording is transformed on reading (speed, volume ...); use `augment` in a recipe"
        )
    sources = [each for each in recording.get("sources") or () if isinstance(each, dict)]
    if len(sources) != 1 or sources[0].get("type") not in ("file", "url"):
        raise RowError("its recording is not a single file")
    if isinstance(cut.get("channel"), int) and len(sources[0].get("channels") or [0]) > 1:
        raise RowError("one channel of a recording with several; write the channels to separate files")
    start, duration = cut.get("start", 0.0), cut.get("duration")
    if not isinstance(start, int | float) or not isinstance(duration, int | float) or duration <= 0:
        raise RowError("no start and duration")
    row: dict[str, Any] = {
        "audio": find_recording(str(sources[0]["source"]), folder, root),
        "id": str(cut.get("id")),
        "offset": start,
        "duration": duration,
    }
    supervisions = sorted(
        (each for each in cut.get("supervisions") or () if isinstance(each, dict)),
        key=lambda each: each.get("start") or 0,
    )
    texts = [each["text"].strip() for each in supervisions if isinstance(each.get("text"), str)]
    if any(texts):
        row["text"] = " ".join(filter(None, texts))
    for each in supervisions:
        plain = {**{k: each.get(k) for k in ("speaker", "language", "gender")}, **(each.get("custom") or {})}
        for name, value in plain.items():
            if isinstance(value, str | int | float) and name not in row:
                row[name] = value
    return row
