"""Sources of made-up rows, for tests of the order: no file behind them."""

from uniaudio.data.sources.base import AudioRef, BrokenShardError, IndexedSource, Place, Row, ShardedSource
from uniaudio.errors import RowError


def made_row(key, seconds):
    return Row(str(key), {"label": "low"}, (AudioRef(b"", str(key), seconds),))


class Rows(IndexedSource):
    """``count`` rows by index; ``bad`` ones cannot be used."""

    def __init__(self, count, seconds=lambda i: 0.5 + i % 7, bad=()):
        self.size, self.seconds, self.bad = count, seconds, bad

    def row(self, index):
        if index in self.bad:
            raise RowError("missing file", str(index))
        return made_row(index, self.seconds(index))


class Shards(ShardedSource):
    """Shards of the given numbers of rows, keys ``shard/row``.

    ``offset`` runs in tens, so that a test sees whether it is handed on. ``hidden`` rows are not kept, and from
    ``broken[shard]`` on a shard cannot be read. Counts what is read.
    """

    def __init__(self, *counts, seconds=lambda i: 0.5 + i % 7, hidden=(), broken=()):
        self.counts, self.seconds, self.hidden, self.broken = counts, seconds, hidden, dict(broken)
        self.shards = tuple(f"shard{i}" for i in range(len(counts)))
        self.opened: list[tuple[int, Place]] = []
        self.rows_read = 0

    def read(self, shard, place):
        assert place.offset == 10 * place.row
        self.opened.append((shard, place))
        for row in range(place.row, self.counts[shard]):
            if row >= self.broken.get(shard, 10**9):
                raise BrokenShardError(f"cut at row {row}")
            self.rows_read += 1
            kept = (shard, row) not in self.hidden
            yield (
                made_row(f"{shard}/{row}", self.seconds(row)) if kept else None,
                Place(row + 1, 10 * row + 10),
            )
