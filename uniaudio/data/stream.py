"""Which rows make which micro-batch of which step: planned in the same way by everybody, without decoding."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from uniaudio.data.order import draw, number, permuted
from uniaudio.data.recipe import Recipe
from uniaudio.data.source import Row, Source
from uniaudio.errors import RowError, UserError

SHORTEST = 0.01  # seconds; less than one mel window is no clip


@dataclass(frozen=True)
class Skip:
    """A row that was left out, and why."""

    source: str
    row: str
    reason: str
    detail: str


@dataclass(frozen=True)
class PlannedRow:
    """The n-th example of the run: a row of an entry, not decoded yet."""

    n: int
    entry: int
    row: Row
    seconds: float


@dataclass(frozen=True)
class PlanState:
    """A position in the global order: a few integers, whatever the number of ranks and workers.

    Args:
        pool: index of the pool. taken: its micro-batches that are used up. counts: draws of every entry before it.
        fingerprint: of everything that the order depends on.
    """

    pool: int
    taken: int
    counts: tuple[int, ...]
    fingerprint: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``state.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> PlanState:
        """Read what ``to_json`` wrote."""
        return cls(data["pool"], data["taken"], tuple(data["counts"]), data["fingerprint"])


@dataclass(frozen=True)
class PlannedStep:
    """The micro-batches of one optimizer step over all ranks, and the position behind it."""

    micro: tuple[tuple[PlannedRow, ...], ...]
    skips: tuple[Skip, ...]
    state: PlanState


class Window:
    """The k-th draw from a stream of unknown length: windows of rows, shuffled, the stream begun again at its end."""

    def __init__(self, source: Source, size: int, seed: int) -> None:
        self.source = source
        self.size = size
        self.seed = seed
        self.index = -1
        self.rows: list[Row] = []
        self.stream: Iterator[Row] = iter(())

    def row(self, k: int) -> Row:
        window, place = divmod(k, self.size)
        if window < self.index or self.index < 0:
            self.index, self.stream = -1, self.source.stream(0)
        while self.index < window:
            self.rows = [self.next_row() for _ in range(self.size)]
            self.index += 1
        return self.rows[permuted(place, self.size, number(self.seed, "window", window))]

    def next_row(self) -> Row:
        row = next(self.stream, None)
        if row is None:
            self.stream = self.source.stream(0)
            row = next(self.stream, None)
            if row is None:
                raise UserError("a streamed dataset has no rows (is the split's `keep` right?)")
        return row


class StepPlan:
    """The endless sequence of steps of a stage.

    Args:
        audio_seconds, per_example: budget of a micro-batch; a row costs its seconds plus ``per_example``.
        pool: examples that are sorted by length together. micro_batches: of one step, over all ranks.
        state: where to continue.

    Raises:
        UserError: when the state belongs to other data, or a whole pool holds nothing that can be used.
    """

    def __init__(
        self,
        recipe: Recipe,
        sources: Sequence[Source],
        seed: int,
        audio_seconds: float,
        per_example: float,
        max_seconds: float,
        pool: int,
        micro_batches: int,
        state: PlanState | None = None,
    ) -> None:
        self.recipe = recipe
        self.sources = sources
        self.seed = seed
        self.audio_seconds = audio_seconds
        self.per_example = per_example
        self.max_seconds = max_seconds
        self.pool = pool
        self.micro_batches = micro_batches
        self.shares = recipe.train_shares()
        names = [f"{entry.name}:{entry.split}" for entry in recipe.train]
        sizes = [source.size for source in sources]
        self.fingerprint = (
            f"{number(seed, repr((names, self.shares, sizes, audio_seconds, per_example, pool))):016x}"
        )
        self.windows = [
            Window(source, pool, number(seed, name)) if source.size is None else None
            for source, name in zip(sources, names, strict=True)
        ]
        self.state = state or PlanState(0, 0, (0,) * len(names), self.fingerprint)
        if self.state.fingerprint != self.fingerprint:
            raise UserError(
                "the data differ from those of the checkpoint (entries, weights, number of rows, seed, pool or "
                "budget): continue with the same recipe, or start a new run from its weights"
            )

    def __iter__(self) -> Iterator[PlannedStep]:
        micro: list[tuple[PlannedRow, ...]] = []
        skips: list[Skip] = []
        for batch, new_skips, state in self.micro_batches_from(self.state):
            skips += new_skips
            micro.append(batch)
            if len(micro) == self.micro_batches:
                yield PlannedStep(tuple(micro), tuple(skips), state)
                micro, skips = [], []

    def micro_batches_from(
        self, state: PlanState
    ) -> Iterator[tuple[tuple[PlannedRow, ...], list[Skip], PlanState]]:
        """Yield micro-batches, the rows skipped on the way to them, and the position behind each."""
        pool, taken, counts = state.pool, state.taken, state.counts
        pending: list[Skip] = []
        while True:
            rows, skips, counts_after = self.draw_pool(pool, counts)
            if not rows:
                reasons = sorted({f"{skip.source}: {skip.reason}" for skip in skips})
                raise UserError(f"none of {len(skips)} rows in a row can be used ({'; '.join(reasons)})")
            batches = self.cut(rows, pool)
            pending += skips if taken == 0 else []  # a continued pool has told of them before
            for index in range(taken, len(batches)):
                yield batches[index], pending, PlanState(pool, index + 1, counts, self.fingerprint)
                pending = []
            pool, taken, counts = pool + 1, 0, counts_after

    def draw_pool(
        self, pool: int, counts: tuple[int, ...]
    ) -> tuple[list[PlannedRow], list[Skip], tuple[int, ...]]:
        """Draw the rows of a pool; leave out what its header already rules out."""
        drawn = list(counts)
        rows, skips = [], []
        for n in range(pool * self.pool, (pool + 1) * self.pool):
            entry = draw(self.shares, self.seed, n)
            name = self.recipe.train[entry].dataset.name
            key = str(drawn[entry])
            try:
                row = self.pick(entry, drawn[entry])
                key = row.key
                rows.append(PlannedRow(n, entry, row, self.usable_seconds(row)))
            except RowError as problem:
                skips.append(Skip(name, key, problem.reason, problem.detail))
            drawn[entry] += 1
        return rows, skips, tuple(drawn)

    def pick(self, entry: int, k: int) -> Row:
        """Return the row of the k-th draw from an entry: epoch after epoch, each in its own order."""
        window = self.windows[entry]
        if window is not None:
            return window.row(k)
        source = self.sources[entry]
        assert source.size is not None
        epoch, place = divmod(k, source.size)
        return source.row(
            permuted(place, source.size, number(self.seed, self.recipe.train[entry].name, epoch))
        )

    def usable_seconds(self, row: Row) -> float:
        """Return the seconds of all clips of a row, when they can be used."""
        seconds = 0.0
        for ref in row.audio:
            length = ref.known_seconds()
            if length < SHORTEST:
                raise RowError("empty audio", f"{ref.name}: {length:g} s")
            if length > self.max_seconds:
                raise RowError(
                    "clip too long", f"{ref.name}: {length:.1f} s, data.max_seconds is {self.max_seconds:g}"
                )
            seconds += length
        return seconds

    def cut(self, rows: list[PlannedRow], pool: int) -> list[tuple[PlannedRow, ...]]:
        """Sort by length, fill micro-batches up to the budget, and shuffle their order."""
        batches: list[list[PlannedRow]] = []
        room = 0.0
        for row in sorted(rows, key=lambda row: (row.seconds, row.n)):
            cost = row.seconds + self.per_example
            if not batches or cost > room:
                batches.append([])
                room = self.audio_seconds
            batches[-1].append(row)
            room -= cost
        random.Random(number(self.seed, "pool", pool)).shuffle(batches)
        return [tuple(batch) for batch in batches]
