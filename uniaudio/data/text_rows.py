"""What rows say, without their audio: all rows of a source, or a stated sample that is spread over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.base import IndexedSource, Row, Source
from uniaudio.data.sources.paths import find_codec, is_remote
from uniaudio.errors import RowError

MOST_ROWS = 200_000  # of a split that are read; of more it is a sample
SLOW_ROWS, SLOW_SHARDS = 2_000, 4  # of a split that is read over a network, or from compressed tars


class TextRows:
    """Rows whose clips are named but not read; they are gone through once.

    Args:
        parts: the rows of a split, or of some of its shards. most: rows that are read of each part.
        count: how many there are at most. sample: says which part of the split is read, where it is not all.
        is_cut: not all parts of the split are here.
    """

    def __init__(
        self,
        parts: Iterable[Iterator[Row | RowError]],
        most: int,
        count: int | None,
        sample: str = "",
        is_cut: bool = False,
    ) -> None:
        self.parts, self.most, self.count, self.cut_sample, self.is_cut = parts, most, count, sample, is_cut

    def __iter__(self) -> Iterator[Row | RowError]:
        for rows in self.parts:
            yield from islice(rows, self.most)
            self.is_cut = self.is_cut or next(rows, None) is not None

    @property
    def sample(self) -> str:
        """Which part of the split was read, known behind the last row; empty for all of it."""
        return self.cut_sample if self.is_cut else ""


def read_text_rows(source: Source, card: DatasetCard) -> TextRows:
    """Return all rows of a split of a card, or a sample that is spread over it where they are many or far away."""
    if isinstance(source, IndexedSource):
        if source.size <= MOST_ROWS:
            return TextRows([source.rows()], MOST_ROWS, source.size)
        what = f"{MOST_ROWS:,} rows, spread over {source.size:,}"
        return TextRows([spread_rows(source, MOST_ROWS)], MOST_ROWS, MOST_ROWS, what, is_cut=True)
    order = spread_over(len(source.shards))
    if is_slow(source.shards, card):
        order, total = order[:SLOW_SHARDS], len(order)
        first = SLOW_ROWS // len(order)
        what = f"the first {first:,} rows of {len(order)} of {total:,} shard(s)"
        return TextRows(map(source.shard_text_rows, order), first, None, what, len(order) < total)
    every = chain.from_iterable(map(source.shard_text_rows, order))
    return TextRows(
        [every], MOST_ROWS, source.size, f"up to {MOST_ROWS:,} rows from shards spread over the data"
    )


def is_slow(shards: tuple[str, ...], card: DatasetCard) -> bool:
    """Return whether reading shards takes a network or decompression."""
    if card.load.kind == "hub" and not card.is_local:
        return True
    return any(is_remote(place) or find_codec(place) is not None for place in shards)


def spread_rows(source: IndexedSource, most: int, first: int = 0) -> Iterator[Row | RowError]:
    """Return up to ``most`` rows that are spread over those from row ``first`` on."""
    left = source.size - first
    count = min(most, left)
    return (source.read_row_or_error(first + i * left // count) for i in range(count))


def spread_over(count: int) -> list[int]:
    """Return the numbers below ``count`` in an order of which every beginning is spread over all of them."""
    width = max(1, (count - 1).bit_length())
    backwards = (int(f"{number:0{width}b}"[::-1], 2) for number in range(2**width))
    return [number for number in backwards if number < count]
