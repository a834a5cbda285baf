"""Some clips of a source, decoded: those that are odd though usable, and those that cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from uniaudio.data.audio import ADVICE
from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.base import IndexedSource, Row, Source, decode_clips
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.data.text_rows import is_slow, spread_over, spread_rows
from uniaudio.errors import RowError
from uniaudio.types import SAMPLE_RATE

LONGEST_DECODED = 120.0  # seconds of a clip; longer ones are not decoded to be looked at
ROWS_SPREAD = 8  # rows spread over a source whose clips are decoded
SCANNED = 20  # rows of a shard in which one is looked for that the split keeps


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


def describe_broken_spread(spread: DecodedClips) -> list[str]:
    """Return a line about clips spread over a source that cannot be decoded."""
    if not spread.broken:
        return []
    reasons = describe_left_out(spread.broken)
    return [f"clips of {spread.rows} rows spread over the set that cannot be decoded: {reasons}"]


def find_undecodable(first: DecodedClips, spread: DecodedClips) -> str:
    """Return why a clip cannot be decoded, where hardly any clip of a source can; else an empty text.

    Eight broken clips of eight spread over a source are practically impossible where most of its clips are sound,
    whatever the first ones are like. Fewer count together with the first ones.
    """
    if not spread.rows:
        return first.undecodable
    are_enough = spread.rows >= ROWS_SPREAD or bool(first.undecodable)
    return (first.undecodable or spread.undecodable) if spread.undecodable and are_enough else ""


def iterate_spread_rows(source: Source, card: DatasetCard, first: int) -> Iterator[Row]:
    """Yield up to ``ROWS_SPREAD`` rows spread over what lies behind the first rows of a source.

    None of shards that are read over a network or from compressed tars: each would have to be opened.

    Args:
        first: rows at the beginning that are looked at anyway.
    """
    rows: Iterable[object] = ()
    if isinstance(source, IndexedSource):
        rows = spread_rows(source, ROWS_SPREAD, first)
    elif not is_slow(source.shards, card):
        shards = [shard for shard in spread_over(len(source.shards)) if shard][:ROWS_SPREAD]
        kept = (
            (row for row in islice(source.shard_rows(s), SCANNED) if isinstance(row, Row)) for s in shards
        )
        rows = (next(each, None) for each in kept)
    yield from (row for row in rows if isinstance(row, Row))


def decode_some_clips(rows: Iterable[Row], seconds: float) -> DecodedClips:
    """Decode the clips of some rows, the first of a source or others, to see what they are like.

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
