"""Clips to listen to: found again by their ids, cut, encoded small and put into the page itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import soundfile
from numpy.typing import NDArray

from uniaudio.data.eval_examples import build_example, iterate_examples, open_examples
from uniaudio.data.long_clips import LongClips
from uniaudio.data.recipe_entries import EvalEntry, open_entry
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import Row
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


class SoundBudget:
    """The clips of one page; it is full after so many bytes, and counts what had to be left out."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.used = 0
        self.left_out = 0

    def add_player(self, name: str, samples: NDArray[np.int16]) -> Player | None:
        """Encode the beginning of a clip, or return None when the budget is used up.

        Args:
            samples: ``[S]`` int16 at 16 kHz.
        """
        cut = samples[: round(LONGEST * SAMPLE_RATE)]
        uri = "data:audio/mpeg;base64," + base64.b64encode(encode_mp3(cut)).decode("ascii")
        if self.used + len(uri) > self.most_bytes:
            self.left_out += 1
            return None
        self.used += len(uri)
        return Player(name, uri, len(cut) / SAMPLE_RATE, len(samples) / SAMPLE_RATE)

    def add_players(self, clips: Iterable[tuple[str, NDArray[np.int16]]]) -> list[Player]:
        """Encode the beginnings of clips with their names; those that the budget has no room for are missing."""
        players = [self.add_player(name, samples) for name, samples in clips]
        return [player for player in players if player is not None]


def encode_mp3(samples: NDArray[np.int16]) -> bytes:
    """Encode ``[S]`` int16 at 16 kHz: 4 kB a second; of the small formats it is the one that every browser plays."""
    stream = io.BytesIO()
    soundfile.write(stream, samples, SAMPLE_RATE, format="MP3", subtype="MPEG_LAYER_III")
    return stream.getvalue()


def find_examples(entry: EvalEntry, ids: Collection[str]) -> dict[str, Example]:
    """Decode the questions of an evaluation set by their ids, ``DATASET/SPLIT/KEY``; rows that are gone or cannot be
    read now are missing.

    Raises:
        UserError: when the source cannot be opened.
    """
    keys = {name: key for name in ids if (key := parse_key(name, entry)) is not None}
    wanted = {key: name for name, key in keys.items()}
    examples: dict[str, Example] = {}
    entry, source = open_entry(entry)
    for row in source.rows():
        if isinstance(row, Row) and row.key in wanted:
            try:
                examples[wanted[row.key]], _ = build_example(row, entry, DECODED)
            except RowError:
                continue
            if len(examples) == len(wanted):
                break
    return examples


def parse_key(name: str, entry: EvalEntry) -> str | None:
    """Return the key of a row in its split from the id of its example; None where it is of another split."""
    before = f"{entry.dataset.name}/{entry.split}/"
    return name.removeprefix(before) if name.startswith(before) else None


def spread_examples(entry: EvalEntry, most: int, max_seconds: float) -> Iterator[tuple[Example, str]]:
    """Yield up to so many questions with their right answer, from all classes of the split.

    Rows that cannot be used, or whose clip is longer, are skipped.

    Raises:
        UserError: when the source cannot be opened.
    """
    whole = replace(entry, long_clips=LongClips("skip", max_seconds))
    for _, item in iterate_examples(open_examples(whole, most), max_seconds):
        if not isinstance(item, Skip):
            example, references = item
            yield example, references[0]
