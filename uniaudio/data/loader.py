"""Planned rows to packed batches in worker processes; each worker serves its own logical streams."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from uniaudio.data.audio import ClipNotice
from uniaudio.data.batching import PlannedRow
from uniaudio.data.collate import collate
from uniaudio.data.mixture import Mixture, PlannedBatch, StreamState
from uniaudio.data.permutation import hash_parts
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import ClipSamples, ShardedSource, decode_clips
from uniaudio.data.worker_faults import PLACES, ensure_open_files, explain_worker_faults, share_tensors
from uniaudio.errors import RowError, UserError, convert_to_row_error
from uniaudio.feature_cache import FeatureStore, look_up_frames
from uniaudio.launched_processes import end_with_parent
from uniaudio.types import Batch, Example

Mask = tuple[int, int, int, int]
NAMED = 400  # bytes of a row's name that a worker leaves behind when it dies


@dataclass(frozen=True)
class PlanState:
    """A position in the global order: a few integers for each stream that was begun.

    Args:
        step: steps of the stage that are done. streams: of this rank, or of all. fingerprint: of the mixture.
        sources: fingerprints of its sources, by entry.
    """

    step: int
    streams: Mapping[int, StreamState]
    fingerprint: str
    sources: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return plain values for ``state.json``."""
        streams = {str(index): state.to_json() for index, state in self.streams.items()}
        return {
            "step": self.step,
            "streams": streams,
            "fingerprint": self.fingerprint,
            "sources": dict(self.sources),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlanState:
        """Read what ``to_json`` wrote."""
        streams = {int(index): StreamState.from_json(state) for index, state in data["streams"].items()}
        return cls(data["step"], streams, data["fingerprint"], data["sources"])


def join_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the position of the whole run from those of its ranks (as JSON)."""
    streams = {index: state for part in states for index, state in part["streams"].items()}
    return {**states[0], "streams": dict(sorted(streams.items(), key=lambda item: int(item[0])))}


@dataclass(frozen=True)
class MicroBatch:
    """What a worker hands over: a packed batch, what was skipped and drawn on the way, its cost, the position
    behind.
    """

    batch: Batch
    skips: tuple[Skip, ...]
    drawn: Mapping[str, int]
    cost: float
    state: StreamState
    notices: tuple[ClipNotice, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A user's mistake that a worker met: as an exception it would arrive wrapped in its traceback."""

    message: str


@dataclass(frozen=True)
class StepBatch:
    """What one rank does in one step.

    Args:
        micro: its packed micro-batches, at least one, possibly empty ones.
        skips: questions left out on the way. drawn: questions tried, by dataset. cost: of the micro-batches, in
        budgets. state: the position of this rank's streams behind the step. notices: clips that were used, but are odd.
    """

    micro: tuple[Batch, ...]
    skips: tuple[Skip, ...]
    drawn: Mapping[str, int]
    cost: float
    state: PlanState
    notices: tuple[ClipNotice, ...] = ()


@dataclass(frozen=True)
class WorkerDataset(IterableDataset):
    """The micro-batches of some logical streams, in the order in which the rank will ask for them.

    Args:
        turns: the streams in the order of their turns; after the last one the first follows.
        stores: where frames of clips are looked up that encoders need not compute again.
        at: where the worker leaves the name of the row it works on. pid: where it leaves the id of its process.
    """

    mixture: Mixture
    tasks: tuple[str, ...]
    turns: tuple[int, ...]
    states: Mapping[int, StreamState]
    stores: tuple[FeatureStore, ...] = ()
    at: Any = field(default_factory=lambda: multiprocessing.get_context().Array("c", NAMED))
    pid: Any = field(default_factory=lambda: multiprocessing.get_context().Value("q", 0))

    def __iter__(self) -> Iterator[MicroBatch | Failure]:
        gc.collect()
        gc.freeze()  # the imported modules live on anyway; looking through them again and again makes the rows wait
        streams = {
            index: self.mixture.iterate_stream(index, self.states.get(index), self.say)
            for index in set(self.turns)
        }
        self.pid.value = os.getpid()
        in_worker = get_worker_info() is not None
        try:
            for index in itertools.cycle(self.turns):
                micro = self.build(next(streams[index]))
                if in_worker:
                    with explain_worker_faults(self):
                        share_tensors(micro)
                yield micro
        except UserError as mistake:
            yield Failure(str(mistake))

    def say(self, what: str) -> None:
        self.at.value = what.encode(errors="backslashreplace")[: NAMED - 1]

    def build(self, planned: PlannedBatch) -> MicroBatch:
        """Decode and pack; rows that fail now make the micro-batch smaller."""
        examples: list[Example] = []
        skips = list(planned.skips)
        notices: list[ClipNotice] = []
        for row in planned.rows:
            dataset = self.mixture.recipe.train[row.entry].dataset.name
            self.say(f"{dataset}, row {row.row.key}")
            try:
                clips, masks, kinds = self.decode(row)
            except RowError as problem:
                skips += [Skip.of(dataset, row.row.key, problem)] * len(row.questions)
                continue
            notices += [ClipNotice(dataset, row.row.key, kind) for kind in kinds]
            answerable, unusable = self.make_questions(row, clips)
            skips += unusable
            examples += [
                replace(example, shares_clips=i > 0, masks=masks) for i, example in enumerate(answerable)
            ]
        mixture = self.mixture
        batch = collate(examples, mixture.format, mixture.count_slots, self.tasks, mixture.shares_prefixes)
        if self.stores:
            batch = replace(batch, audio=look_up_frames(batch.audio, self.stores))
        return MicroBatch(batch, tuple(skips), planned.drawn, planned.cost, planned.state, tuple(notices))

    def decode(self, planned: PlannedRow) -> tuple[tuple[ClipSamples, ...], tuple[Mask, ...], list[str]]:
        """Decode the clips of a row and change them as its entry says.

        Returns:
            The clips, the masks of their frames, and what is odd about the clips, see ``ClipNotice``.

        Raises:
            RowError: when they cannot be used.
        """
        entry = self.mixture.recipe.train[planned.entry]
        kinds: list[str] = []
        # the last window of a clip may be a little longer
        clips = decode_clips(planned.row, max(self.mixture.max_seconds, planned.seconds), kinds)
        if entry.augmenter is None:
            return clips, (), kinds
        with convert_to_row_error("broken audio", planned.row.key):
            rng = random.Random(hash_parts("augment", self.mixture.seed, entry.name, planned.k))
            clips = tuple(entry.augmenter.augment(clip, rng) for clip in clips)
            return clips, entry.augmenter.draw_masks(clips, rng), kinds

    def make_questions(
        self, planned: PlannedRow, clips: tuple[ClipSamples, ...]
    ) -> tuple[list[Example], list[Skip]]:
        """Return one example per question about decoded clips, and the questions that cannot be packed."""
        entry = self.mixture.recipe.train[planned.entry]
        audio_tokens = sum(self.mixture.count_slots(len(clip)) for clip in clips)
        row = f"{entry.dataset.name}/{entry.split}/{planned.row.key}"
        usable, skips = [], []
        for task, rendered in planned.questions:
            try:
                self.mixture.format.check_question(rendered.prompt, rendered.answer, audio_tokens)
            except RowError as problem:
                skips.append(Skip.of(entry.dataset.name, planned.row.key, problem))
                continue
            usable.append(
                Example(
                    id=row if len(entry.templates) == 1 else f"{row}?{task}",
                    task=task,
                    dataset=entry.dataset.name,
                    clips=clips,
                    prompt=rendered.prompt,
                    answer=rendered.answer,
                    window=planned.row.window,
                )
            )
        return usable, skips


def describe_sharing(mixture: Mixture, workers: int, world: int) -> str:
    """Return what a user should know about how streams, shards and workers fit, or an empty text."""
    sentences = []
    streams = mixture.streams // world
    if workers > streams:
        sentences.append(
            f"data.workers={workers}, but each of {world} processes serves {streams} streams: "
            f"{workers - streams} workers are not started; raise data.streams to use them"
        )
    for entry, source in zip(mixture.recipe.train, mixture.sources, strict=True):
        if isinstance(source, ShardedSource) and len(source.shards) < mixture.streams:
            sentences.append(
                f"dataset {entry.dataset.name} has {len(source.shards)} shard(s) for {mixture.streams} streams: "
                f"several streams read the same shard and take its rows in turns"
            )
    return "\n".join(sentences)


def list_turns(mixture: Mixture, rank: int, world: int, step: int) -> list[int]:
    """Return the streams that a rank serves, in the order of their turns from ``step`` on.

    Place ``i`` of every step belongs to rank ``i mod world``, whatever stream has its turn there.
    """
    places = range(rank, mixture.micro_batches, world)
    period = mixture.streams // mixture.micro_batches
    return [
        ((step + s) * mixture.micro_batches + place) % mixture.streams
        for s in range(period)
        for place in places
    ]


def make_loader(
    mixture: Mixture,
    tasks: tuple[str, ...],
    rank: int,
    world: int,
    workers: int,
    prefetch: int,
    state: PlanState | None = None,
    stores: tuple[FeatureStore, ...] = (),
) -> Iterator[StepBatch]:
    """Yield the endless steps of a rank, built by worker processes (or here, with ``workers=0``).

    Args:
        workers: processes; more than the rank has streams are not started.
        prefetch: micro-batches that each of them keeps ready.
        state: where to continue; it must hold the streams of this rank, and may hold others.
        stores: see ``WorkerDataset``.

    Raises:
        UserError: when the state belongs to other data, for a mistake that a worker met, and when a worker died or
            did not answer: the row it was at is named.
    """
    state = state or PlanState(0, {}, mixture.fingerprint)
    if changed := [
        name for name, now in mixture.source_fingerprints.items() if state.sources.get(name, now) != now
    ]:
        entry = next(entry for entry in mixture.recipe.train if entry.name == changed[0])
        raise UserError(
            f"dataset {entry.dataset.name}: {entry.dataset.load.location} is not what it was at the checkpoint (rows, "
            "their order, a column that is used, or a shard changed): put it back as it was, or start a new run from "
            "the checkpoint's weights"
        )
    if state.fingerprint != mixture.fingerprint:
        raise UserError(
            "the data differ from those of the checkpoint (entries, weights, number of rows or shards, seed, "
            "data.pool, data.window, data.streams, train.micro_batches or budget): continue with the same, or start "
            "a new run from its weights"
        )
    turns = list_turns(mixture, rank, world, state.step)
    served = sorted(set(turns))
    states = {index: state.streams[index] for index in served if index in state.streams}
    crew = max(1, min(workers, len(served)))
    owner = {stream: i % crew for i, stream in enumerate(served)}
    datasets = [
        WorkerDataset(mixture, tasks, tuple(t for t in turns if owner[t] == worker), states, stores)
        for worker in range(crew)
    ]
    # pauses of an outage are no hang; only sources that are read shard by shard come over a network
    outage = mixture.max_outage if any(isinstance(s, ShardedSource) for s in mixture.sources) else 0.0
    options: dict[str, Any] = (
        {
            "prefetch_factor": prefetch,
            "timeout": mixture.patience + outage,
            "worker_init_fn": leave_group,
        }
        if workers
        else {}
    )
    if workers:
        ensure_open_files(crew, prefetch)
    loaders = [open_loader(dataset, workers, options) for dataset in datasets]
    return iterate_steps(mixture, state, turns, owner, loaders, datasets, rank, world)


def open_loader(
    dataset: WorkerDataset, workers: int, options: Mapping[str, Any]
) -> Iterator[MicroBatch | Failure]:
    """Start the worker of a dataset, or serve it here where there are none.

    Raises:
        UserError: when the system has no files, memory or processes left for it.
    """
    if workers:
        PLACES.add(dataset)
    with explain_worker_faults(dataset):
        return iter(DataLoader(dataset, batch_size=None, num_workers=min(workers, 1), **options))


def leave_group(worker: int) -> None:
    """Leave the run's process group: launchers signal all of it, and a run that is to save still needs its data.

    So a worker has to see by itself when its run is gone; torch's own look comes only while nothing is being read.
    """
    os.setpgid(0, 0)
    if (run := multiprocessing.parent_process()) is not None:
        end_with_parent("", run.pid)


def iterate_steps(
    mixture: Mixture,
    state: PlanState,
    turns: Sequence[int],
    owner: Mapping[int, int],
    loaders: Sequence[Iterator[MicroBatch | Failure]],
    datasets: Sequence[WorkerDataset],
    rank: int,
    world: int,
) -> Iterator[StepBatch]:
    """Take micro-batches from the workers in turn and put them together to steps."""
    streams = {index: state.streams[index] for index in owner if index in state.streams}
    places = len(range(rank, mixture.micro_batches, world))
    serving = itertools.cycle(turns)
    for step in itertools.count(state.step + 1):
        taken = []
        for index in itertools.islice(serving, places):
            micro = take_next(loaders[owner[index]], datasets[owner[index]])
            streams[index] = micro.state
            taken.append(micro)
        drawn: Counter[str] = Counter()
        for micro in taken:
            drawn.update(micro.drawn)
        yield StepBatch(
            tuple(micro.batch for micro in taken),
            tuple(skip for micro in taken for skip in micro.skips),
            drawn,
            sum(micro.cost for micro in taken),
            PlanState(step, dict(streams), mixture.fingerprint, mixture.source_fingerprints),
            tuple(notice for micro in taken for notice in micro.notices),
        )


def take_next(loader: Iterator[MicroBatch | Failure], dataset: WorkerDataset) -> MicroBatch:
    """Return a worker's next micro-batch; say what it was at when it cannot give one."""
    with explain_worker_faults(dataset):
        micro = next(loader)
    if isinstance(micro, Failure):
        raise UserError(micro.message)
    return micro
