"""Clips to listen to: found again by their ids, cut, encoded small and put into the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import soundfile
from numpy.typing import NDArray

from uniaudio.data.asked import build_example
from uniaudio.data.recipe import EvalEntry
from uniaudio.data.source import IndexedSource, Row, open_source
from uniaudio.errors import RowError
from uniaudio.types import SAMPLE_RATE, Example

LONGEST = 4.0  # seconds of a clip in the page
DECODED = 600.0  # seconds of the longest clip that is decoded for it
MOST_BYTES = 3 * 2**20  # of all clips of a page together, as they stand in it


@dataclass(frozen=True)
class Player:
    """A clip in the page: ``uri`` holds its sound, ``seconds`` how much of ``whole`` seconds that is."""

    name: str
    uri: str
    seconds: float
    whole: float


class Shelf:
    """The clips of one page; it is full after so many bytes, and counts what had to be left out."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.used = 0
        self.left_out = 0

    def player(self, name: str, samples: NDArray[np.int16]) -> Player | None:
        """Encode the beginning of a clip, or return None when the shelf is full.

        Args:
            samples: ``[S]`` int16 at 16 kHz.
        """
        cut = samples[: round(LONGEST * SAMPLE_RATE)]
        uri = "data:audio/mpeg;base64," + base64.b64encode(mp3(cut)).decode("ascii")
        if self.used + len(uri) > self.most_bytes:
            self.left_out += 1
            return None
        self.used += len(uri)
        return Player(name, uri, len(cut) / SAMPLE_RATE, len(samples) / SAMPLE_RATE)


def mp3(samples: NDArray[np.int16]) -> bytes:
    """Encode ``[S]`` int16 at 16 kHz: 4 kB a second; of the small formats it is the one that every browser plays."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
    return stream.getvalue()


def find_examples(entry: EvalEntry, ids: Collection[str], rows: int) -> dict[str, Example]:
    """Decode the questions of an evaluation set that have these ids, ``DATASET/SPLIT/KEY``.

    Args:
        rows: how many rows of the split were asked; no others are looked at.

    Returns:
        Examples by id; rows that are gone or cannot be read now are missing.

    Raises:
        UserError: when the source cannot be opened.
    """
    keys = {name: key for name in ids if (key := key_of(name, entry)) is not None}
    wanted = {key: name for name, key in keys.items()}
    found: dict[str, Example] = {}
    for row in islice(open_source(entry.dataset, entry.split).rows(), rows):
        if isinstance(row, Row) and row.key in wanted:
            try:
                found[wanted[row.key]], _ = build_example(row, entry, DECODED)
            except RowError:
                continue
            if len(found) == len(wanted):
                break
    return found


def key_of(name: str, entry: EvalEntry) -> str | None:
    """Return the key of a row in its split from the id of its example; None where it is of another split."""
    before = f"{entry.dataset.name}/{entry.split}/"
    return name.removeprefix(before) if name.startswith(before) else None


def spread_examples(entry: EvalEntry, most: int, max_seconds: float) -> Iterator[tuple[Example, str]]:
    """Yield up to so many questions with their right answer, from all over the split.

    Of a source that knows its rows they stand at equal distances, since a manifest is often sorted by label; of another
    they are the first ones. Rows that cannot be used, or whose clip is longer, are passed over.

    Raises:
        UserError: when the source cannot be opened.
    """
    source = open_source(entry.dataset, entry.split)
    if isinstance(source, IndexedSource):
        count = min(most, source.size)
        rows = (row_or_none(source, i * source.size // count) for i in range(count))
    else:
        rows = (row if isinstance(row, Row) else None for row in islice(source.rows(), most))
    for row in rows:
        if row is not None:
            try:
                example, references = build_example(row, entry, max_seconds)
            except RowError:
                continue
            yield example, references[0]


def row_or_none(source: IndexedSource, index: int) -> Row | None:
    try:
        return source.row(index)
    except RowError:
        return None
