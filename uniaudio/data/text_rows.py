"""What rows say, without their audio: all rows of a source, or a stated sample that is spread over it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.base import IndexedSource, Row, Source
from uniaudio.data.sources.paths import find_codec, is_remote
from uniaudio.errors import RowError

MOST_ROWS = 200_000  # of a split that are read; of more it is a sample
SLOW_ROWS, SLOW_SHARDS = 2_000, 4  # of a split that is read over a network, or from compressed tars


@dataclass(frozen=True)
class TextRows:
    """Rows whose clips are named but not read.

    Args:
        count: how many there are at most. sample: says which part of the split they are; empty for all of it.
    """

    rows: Iterator[Row | RowError]
    count: int | None
    sample: str = ""


def read_text_rows(source: Source, card: DatasetCard, most: int = MOST_ROWS) -> TextRows:
    """Return all rows of a split of a card, or a sample that is spread over it where they are many or far away."""
    if isinstance(source, IndexedSource):
        if source.size <= most:
            return TextRows(source.shard_text_rows(0), source.size)
        chosen = (i * source.size // most for i in range(most))
        return TextRows(
            map(source.read_row_or_error, chosen), most, f"{most:,} rows, spread over {source.size:,}"
        )
    order = spread_over(len(source.shards))
    if is_slow(source.shards, card):
        order = order[:SLOW_SHARDS]
        most = SLOW_ROWS // len(order)
        rows = (row for shard in order for row in islice(source.shard_text_rows(shard), most))
        total = len(source.shards)
        return TextRows(rows, None, f"the first {most:,} rows of {len(order)} of {total:,} shard(s)")
    every = (row for shard in order for row in source.shard_text_rows(shard))
    if source.size is not None and source.size <= most:
        return TextRows(every, source.size)
    return TextRows(islice(every, most), source.size, f"up to {most:,} rows of shards in a spread order")


def is_slow(shards: tuple[str, ...], card: DatasetCard) -> bool:
    """Return whether reading shards takes a network or decompression."""
    if card.load.kind == "hub" and not card.is_local:
        return True
    return any(is_remote(place) or find_codec(place) is not None for place in shards)


def spread_over(count: int) -> list[int]:
    """Return the numbers below ``count`` in an order of which every beginning is spread over all of them."""
    width = max(1, (count - 1).bit_length())
    backwards = (int(f"{number:0{width}b}"[::-1], 2) for number in range(2**width))
    return [number for number in backwards if number < count]
