"""Planned rows to packed batches, in worker processes: every worker plans all steps and builds only its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from uniaudio.data.audio import decode
from uniaudio.data.batch import collate
from uniaudio.data.order import example_rng
from uniaudio.data.recipe import Entry, EvalEntry
from uniaudio.data.source import Row, open_source
from uniaudio.data.stream import PlannedRow, PlanState, Skip, StepPlan
from uniaudio.data.tokens import ChatFormat
from uniaudio.errors import RowError, UserError
from uniaudio.types import Batch, Example


@dataclass(frozen=True)
class StepBatch:
    """What one rank does in one step.

    Args:
        micro: its packed micro-batches, at least one, possibly empty ones.
        skips: rows left out on the way. drawn: rows tried, by dataset. state: the position behind the step.
    """

    micro: tuple[Batch, ...]
    skips: tuple[Skip, ...]
    drawn: Mapping[str, int]
    state: PlanState
    failure: str = ""


def build_example(
    row: Row, entry: Entry | EvalEntry, max_seconds: float, seed: int | None = None, n: int = 0
) -> Example:
    """Decode and render one row.

    Args:
        seed, n: of the example's own generator; without a seed the first wording is taken, as in evaluation.

    Raises:
        RowError: when the row cannot be used.
    """
    rng = None if seed is None else example_rng(seed, n)
    rendered = entry.template.render({**entry.dataset.fields(row.columns), **entry.constants}, rng)
    if len(row.audio) != entry.template.num_clips:
        raise RowError(
            "template error", f"{len(row.audio)} clip(s) for {entry.template.num_clips} audio mark(s)"
        )
    clips = tuple(decode(ref.source, max_seconds, ref.name) for ref in row.audio)
    return Example(
        id=f"{entry.dataset.name}/{entry.split}/{row.key}",
        task=entry.template.task,
        dataset=entry.dataset.name,
        clips=clips,
        prompt=rendered.prompt,
        answer=rendered.answer,
    )


@dataclass(frozen=True)
class StepDataset(IterableDataset):
    """The steps of one rank from a plan on: micro-batches ``rank, rank + world, ...`` of every step."""

    plan: StepPlan
    format: ChatFormat
    slots_for: Callable[[int], int]
    tasks: tuple[str, ...]
    rank: int = 0
    world: int = 1
    example_seed: int = field(default=0)

    def __iter__(self) -> Iterator[StepBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        try:
            for planned in islice(self.plan, worker, None, workers):
                built = [self.build(rows) for rows in planned.micro[self.rank :: self.world]]
                skips = [skip for _, skipped in built for skip in skipped]
                drawn: dict[str, int] = {}
                names = [self.name(row) for rows in planned.micro[self.rank :: self.world] for row in rows]
                if self.rank == 0:  # everybody plans the same, one tells
                    skips = [*planned.skips, *skips]
                    names += [skip.source for skip in planned.skips]
                for name in names:
                    drawn[name] = drawn.get(name, 0) + 1
                yield StepBatch(tuple(batch for batch, _ in built), tuple(skips), drawn, planned.state)
        except UserError as mistake:
            # a worker's exception would arrive wrapped in its traceback
            yield StepBatch((), (), {}, self.plan.state, failure=str(mistake))

    def name(self, row: PlannedRow) -> str:
        return self.plan.recipe.train[row.entry].dataset.name

    def build(self, rows: tuple[PlannedRow, ...]) -> tuple[Batch, list[Skip]]:
        """Decode, render and pack; rows that fail now make the micro-batch smaller."""
        usable, skips = [], []
        for planned in rows:
            entry = self.plan.recipe.train[planned.entry]
            try:
                example = build_example(
                    planned.row, entry, self.plan.max_seconds, self.example_seed, planned.n
                )
                for text in (*example.prompt, example.answer):
                    self.format.checked(text)
                usable.append(example)
            except RowError as problem:
                skips.append(Skip(entry.dataset.name, planned.row.key, problem.reason, problem.detail))
        return collate(usable, self.format, self.slots_for, self.tasks), skips


def single(items: list[StepBatch]) -> StepBatch:
    return items[0]


def make_loader(dataset: StepDataset, workers: int, prefetch: int) -> Iterator[StepBatch]:
    """Yield the steps of a rank, built by worker processes (or here, with ``workers=0``).

    Raises:
        UserError: for a mistake that a worker met.
        RuntimeError: when a worker process died.
    """
    options: dict[str, Any] = {"prefetch_factor": prefetch} if workers else {}
    loader = DataLoader(dataset, batch_size=1, collate_fn=single, num_workers=workers, **options)
    for step in loader:
        if step.failure:
            raise UserError(step.failure)
        yield step


def iterate_examples(
    entry: EvalEntry, limit: int | None, max_seconds: float
) -> Iterator[tuple[Example, tuple[str, ...]] | Skip]:
    """Yield the examples of an evaluation entry with all their right answers, in the order of the source.

    Rows that cannot be used come as ``Skip``; both count towards ``limit``.
    """
    source = open_source(entry.dataset, entry.split)
    for row in islice(source.stream(0), limit):
        try:
            example = build_example(row, entry, max_seconds)
            fields = {**entry.dataset.fields(row.columns), **entry.constants}
            yield example, entry.template.render(fields, None).references
        except RowError as problem:
            yield Skip(entry.dataset.name, row.key, problem.reason, problem.detail)
