"""Where a logical stream is in a source: the next rows, epoch after epoch, from a position of a few integers."""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple
from weakref import WeakSet

from uniaudio.data.permutation import hash_parts, permute_index
from uniaudio.data.skipped_rows import BrokenShard, Skip
from uniaudio.data.sources.base import (
    BROKEN_SHARD,
    BrokenShardError,
    IndexedSource,
    Place,
    Row,
    ShardedSource,
    read_row_or_error,
)
from uniaudio.data.sources.retries import MAX_OUTAGE, read_patiently
from uniaudio.errors import RowError, UserError, convert_to_row_error

ROWS_TOGETHER = 16  # rows whose windows are shuffled together, where there are as many
BARREN = 4  # times as many empty epochs as there are streams, before a source counts as empty


class IndexedCursor:
    """The rows of an indexed source that fall to one of ``streams`` logical streams.

    The stream's j-th draw is draw ``j * streams + stream`` of the source: streams draw equally often, so together they
    go through one permutation of all rows after the other, and each row comes once in each epoch.
    """

    def __init__(self, source: IndexedSource, seed: int, stream: int, streams: int) -> None:
        self.source, self.seed, self.stream, self.streams = source, seed, stream, streams

    def take(self, j: int) -> Row | RowError:
        """Return the row of the stream's j-th draw, or why there is none."""
        epoch, place = divmod(j * self.streams + self.stream, self.source.size)
        return self.source.read_row_or_error(
            permute_index(place, self.source.size, hash_parts(self.seed, epoch))
        )


Cut = Callable[[Row], list[Row]]  # a row to the windows of its clip


def cut_rows(rows: Iterable[Row | RowError], cut: Cut) -> list[Row | RowError]:
    """Return the windows of rows in order; a row whose clip cannot be cut comes as its error."""
    pieces: list[Row | RowError] = []
    for row in rows:
        divided = row if isinstance(row, RowError) else read_row_or_error(partial(cut, row), row.key)
        pieces += [divided] if isinstance(divided, RowError) else divided
    return pieces


class Mark(NamedTuple):
    """A position in the rows of a source that fall to one stream, where rows are shuffled together.

    Args:
        epoch: how often the stream went through its part. unit: of the epoch's units, see ``iterate_units``.
        row, offset: the place in the unit's shard; of an indexed source the stream's number of the draw.
        used: rows, or windows of long clips, taken from those that begin there.
    """

    epoch: int = 0
    unit: int = 0
    row: int = 0
    offset: int = 0
    used: int = 0


class WindowCursor:
    """The windows of the long clips of an indexed source that fall to one stream.

    Rows come to the streams as from an ``IndexedCursor``. Those of several draws are cut, and their windows shuffled
    together: as many draws as give ``size`` windows, ``ROWS_TOGETHER`` at least. A position in the middle of a clip
    is the first of these draws and the number of windows used.
    """

    def __init__(self, rows: IndexedCursor, size: int, cut: Cut, mark: Mark) -> None:
        self.rows, self.size, self.cut, self.mark = rows, size, cut, mark
        # streams share the rows of a small source: no more draws than one of them has in an epoch
        self.least = max(1, min(ROWS_TOGETHER, rows.source.size // rows.streams))
        self.pieces: list[Row | RowError] = []
        self.after = mark.row

    def take(self) -> Row | RowError:
        """Return the next window, or why a row cannot be used."""
        if not self.pieces:
            self.read_pieces(self.mark)
        if self.mark.used == len(self.pieces):  # so may those of a position that is continued from
            self.read_pieces(Mark(row=self.after))
        seed = hash_parts(self.rows.seed, "windows", self.rows.stream, self.mark.row)
        place = permute_index(self.mark.used, len(self.pieces), seed)
        self.mark = self.mark._replace(used=self.mark.used + 1)
        return self.pieces[place]

    def read_pieces(self, mark: Mark) -> None:
        """Cut the rows of the draws from the mark on."""
        self.mark, self.pieces, draw = mark, [], mark.row
        while len(self.pieces) < self.size or draw - mark.row < self.least:
            self.pieces += cut_rows([self.rows.take(draw)], self.cut)
            draw += 1
        self.after = draw


@dataclass(frozen=True)
class Unit:
    """What one stream reads of one shard: every ``parts``-th row from row ``part`` on."""

    shard: int
    part: int = 0
    parts: int = 1


@dataclass(frozen=True)
class Window:
    """Rows that are shuffled together, shards that broke on the way; where it and the next window begin."""

    start: Mark
    rows: list[Row | RowError]
    skips: list[Skip]
    after: Mark


def iterate_units(
    shards: int, epoch: int, stream: int, streams: int, seed: int, first: int = 0
) -> Iterator[Unit]:
    """Yield what a stream reads in an epoch, from its unit number ``first`` on.

    Over all streams each row is read once in each epoch. Shards are dealt out anew in each epoch; where there are fewer
    shards than streams, several streams share a shard and take its rows in turns.
    """
    turn = (stream + epoch) % streams
    if shards >= streams:
        dealt = hash_parts(seed, "shards", epoch)
        for place in range(turn + first * streams, shards, streams):
            yield Unit(permute_index(place, shards, dealt))
    elif first == 0:
        shard = turn % shards
        yield Unit(shard, turn // shards, len(range(shard, streams, shards)))


class ShardCursor:
    """The rows of a sharded source that fall to one stream: read in order, shuffled within windows.

    The next window is read in the background while the rows of one are used.

    Args:
        name: of the dataset, for messages. size: rows of a window; the last one of an epoch may be shorter.
        patience: seconds to wait for a window before the run stops; pauses of an outage do not count.
        max_outage: seconds that an outage of the network is waited out.
        cut: where long clips are cut into windows: the windows of all rows are shuffled together.
    """

    def __init__(
        self,
        source: ShardedSource,
        name: str,
        seed: int,
        stream: int,
        streams: int,
        size: int,
        patience: float,
        mark: Mark,
        max_outage: float = MAX_OUTAGE,
        cut: Cut | None = None,
    ) -> None:
        self.source, self.name, self.seed = source, name, seed
        self.stream, self.streams, self.size, self.patience = stream, streams, size, patience
        self.mark, self.max_outage, self.cut = mark, max_outage, cut
        self.pause_ends = 0.0  # of an outage that is waited out, on the monotonic clock
        self.window: Window | None = None
        self.coming: Future[Window] | None = None
        self.new_skips: list[Skip] = []

    def take(self) -> Row | RowError:
        """Return the next row, or why it cannot be used.

        Raises:
            UserError: when the source has no rows, or reading takes too long.
        """
        window = self.window
        while window is None or self.mark.used == len(window.rows):
            window = self.wait_for_window(window)
        place = permute_index(self.mark.used, len(window.rows), hash_parts(self.seed, *self.mark[:4]))
        self.mark = self.mark._replace(used=self.mark.used + 1)
        return window.rows[place]

    def take_troubles(self) -> list[Skip]:
        """Return the shards that broke since the last call."""
        new_skips, self.new_skips = self.new_skips, []
        return new_skips

    def wait_for_window(self, last: Window | None) -> Window:
        """Wait for the window at the mark (or after the last one), and start to read the one behind it."""
        start = last.after if last is not None else self.mark._replace(used=0)
        coming = self.coming or run_in_background(lambda: self.read_window(start))
        begun = time.monotonic()
        while not coming.done():
            left = max(begun, self.pause_ends) + self.patience - time.monotonic()
            if left <= 0:
                raise UserError(
                    f"dataset {self.name}: {self.describe_mark(start)} could not be read within "
                    f"{self.patience:g} s; check that it can be reached, or raise data.patience"
                )
            wait([coming], timeout=left)
        window = coming.result()
        if last is not None or self.mark.used == 0:  # a continued window has told of them before
            self.new_skips += window.skips
        self.mark = window.start._replace(used=self.mark.used if last is None else 0)
        self.window = window
        self.coming = run_in_background(lambda: self.read_window(window.after))
        return window

    def note_pause(self, seconds: float) -> None:
        """Remember until when an outage is being waited out."""
        self.pause_ends = time.monotonic() + seconds

    def iterate_units(self, mark: Mark) -> Iterator[Unit]:
        """Yield the units of the mark's epoch from its unit on."""
        shards = len(self.source.shards)
        return iterate_units(shards, mark.epoch, self.stream, self.streams, self.seed, mark.unit)

    def describe_mark(self, mark: Mark) -> str:
        unit = next(self.iterate_units(mark))
        return f"{self.source.shards[unit.shard]} from row {mark.row} on"

    def read_window(self, start: Mark) -> Window:
        """Read the rows of a window; epochs without any row are skipped."""
        rows: list[Row | RowError] = []
        skips: list[Skip] = []
        mark = start
        for _ in range(BARREN * self.streams):
            begin, mark = mark, self.read_epoch(mark, rows, skips)
            if rows:
                pieces = rows if self.cut is None else cut_rows(rows, self.cut)
                return Window(begin, pieces, skips, mark)
        broken = f"; {skips[0].row}: {skips[0].detail}" if skips else " (is the split's `keep` right?)"
        raise UserError(f"dataset {self.name} has no rows{broken}")

    def read_epoch(self, mark: Mark, rows: list[Row | RowError], skips: list[Skip]) -> Mark:
        """Add rows up to the size of a window or the end of the epoch; return the mark behind them."""
        place = Place(mark.row, mark.offset)
        for number_of_unit, unit in enumerate(self.iterate_units(mark), mark.unit):
            last = place
            try:
                for row, behind in self.read_shard(unit.shard, place):
                    last = behind
                    if row is not None and (behind.row - 1) % unit.parts == unit.part:
                        rows += filter(None, self.source.divide_row(row))
                        if len(rows) >= self.size:
                            return Mark(mark.epoch, number_of_unit, *behind)
            except RowError as problem:
                shards = self.source.shards
                skips.append(
                    BrokenShard.estimate(self.name, shards[unit.shard], len(shards), last.row, problem)
                )
            place = Place()
        return Mark(mark.epoch + 1)

    def read_shard(self, shard: int, place: Place) -> Iterator[tuple[Row | RowError | None, Place]]:
        """Yield the rows of a shard from a place on, see ``ShardedSource.read``.

        Raises:
            RowError: "broken shard", whatever ended the reading.
        """
        with convert_to_row_error(BROKEN_SHARD, self.source.shards[shard]):
            try:
                yield from read_patiently(
                    self.source, shard, place, self.name, self.max_outage, waited=self.note_pause
                )
            except BrokenShardError as problem:
                raise RowError(BROKEN_SHARD, str(problem)) from problem


READERS: WeakSet[threading.Thread] = WeakSet()
LAST_WORDS = 5.0  # seconds that a process waits at its end for reads that are under way


@atexit.register
def end_reading() -> None:
    """Let reads end before the interpreter does: one that is then inside a library would abort the process."""
    until = time.monotonic() + LAST_WORDS
    for thread in list(READERS):
        thread.join(max(0.0, until - time.monotonic()))


def run_in_background(work: Callable[[], Window]) -> Future[Window]:
    """Run in a thread that does not keep the process from ending for ever, as those of an executor would."""
    future: Future[Window] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as problem:  # whatever it is, it belongs to whoever waits
            future.set_exception(problem)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    READERS.add(thread)
    return future
