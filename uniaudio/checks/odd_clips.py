"""The first clips of a source, decoded: those that are odd though usable, and those that cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from uniaudio.data.audio import ADVICE
from uniaudio.data.sources.base import Row, decode_clips
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.errors import RowError
from uniaudio.types import SAMPLE_RATE

LONGEST_DECODED = 120.0  # seconds of a clip; longer ones are not decoded to be looked at


@dataclass
class DecodedClips:
    """What the clips of some rows are like.

    Args:
        rows: that were looked at. kinds: those with odd clips, by kind. broken: those whose clips cannot be decoded, by
            reason. problem: of the first of these.
    """

    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    problem: str = ""

    @property
    def undecodable(self) -> str:
        """Why the first clip cannot be decoded, where none of them can; else an empty text."""
        return self.problem if self.rows and self.broken.total() == self.rows else ""

    def describe(self) -> list[str]:
        """Return a line for each kind of odd clips, and one for those that cannot be decoded."""
        notes = [
            f"{kind} in {count} of the first {self.rows} rows: {ADVICE[kind]}"
            for kind, count in self.kinds.items()
        ]
        if self.broken:
            reasons = describe_left_out(self.broken)
            notes.append(f"clips of the first {self.rows} rows that cannot be decoded: {reasons}")
        return notes


def decode_first_clips(rows: Sequence[Row], seconds: float) -> DecodedClips:
    """Decode the clips of the first rows to see what they are like.

    Args:
        seconds: of audio that are decoded at most.
    """
    seen = DecodedClips()
    for row in rows:
        of_row: list[str] = []
        try:
            seconds -= sum(map(len, decode_clips(row, LONGEST_DECODED, of_row))) / SAMPLE_RATE
        except RowError as problem:
            if problem.reason != "clip too long":
                seen.broken[problem.reason] += 1
                seen.problem = seen.problem or f"{row.key}: {problem}"
        seen.kinds.update(set(of_row))
        seen.rows += 1
        if seconds <= 0:
            break
    return seen
