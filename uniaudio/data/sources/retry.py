"""Reading over a network that fails now and then: again from the last good place, after a growing pause."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from uniaudio.data.source import Place, Row, ShardedSource
from uniaudio.errors import RowError, UserError


def read_patiently(
    source: ShardedSource,
    shard: int,
    place: Place,
    name: str,
    tries: int = 5,
    pause: float = 1.0,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[tuple[Row | RowError | None, Place]]:
    """Yield what ``source.read`` yields; open the shard again where an ``OSError`` ended it.

    Pauses double: 1, 2, 4, 8 s. A row that arrives starts the count anew. ``BrokenShardError`` passes through.

    Args:
        name: of the dataset. tries: without any row, before the run stops.

    Raises:
        UserError: naming dataset, shard and row, after the last try.
    """
    failed = 0
    while True:
        try:
            for row, behind in source.read(shard, place):
                yield row, behind
                place, failed = behind, 0
            return
        except OSError as problem:
            failed += 1
            if failed == tries:
                reason = (str(problem) or type(problem).__name__).splitlines()[0]
                raise UserError(
                    f"dataset {name}: {source.shards[shard]} cannot be read from row {place.row} on, "
                    f"tried {tries} times ({reason})"
                ) from problem
            sleep(pause * 2 ** (failed - 1))
