"""The steps of a rank: micro-batches of its logical streams, made by data workers and taken from them in turn."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.utils.data import DataLoader

from uniaudio.data.audio import ClipNotice
from uniaudio.data.mixture import Mixture, StreamState
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import ShardedSource
from uniaudio.data.worker_dataset import FORK, Failure, MicroBatch, WorkerDataset
from uniaudio.data.worker_faults import (
    WORKERS,
    ensure_open_files,
    explain_worker_faults,
    ignore_cut_connections,
)
from uniaudio.errors import UserError
from uniaudio.feature_cache import FeatureStore
from uniaudio.launched_processes import end_with_parent
from uniaudio.types import Batch


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

    @classmethod
    def at_beginning(cls, mixture: Mixture) -> PlanState:
        """Return where a mixture begins."""
        return cls(0, {}, mixture.fingerprint, mixture.source_fingerprints)

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
class StepBatch:
    """What one rank does in one step.

    Args:
        micro: its packed micro-batches, at least one, possibly empty ones.
        skips: questions left out on the way. drawn: questions tried, by dataset.
        cost: of the micro-batches, in budgets. state: the position of this rank's streams behind the step.
        notices: clips that were used, but are odd.
    """

    micro: tuple[Batch, ...]
    skips: tuple[Skip, ...]
    drawn: Mapping[str, int]
    cost: float
    state: PlanState
    notices: tuple[ClipNotice, ...] = ()


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
                f"dataset {entry.dataset.name} has {len(source.shards)} shard(s) for "
                f"{mixture.streams} streams: several streams read the same shard and take its rows "
                "in turn"
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
) -> Generator[StepBatch, None, None]:
    """Yield the endless steps of a rank, built by worker processes (or here, with ``workers=0``) until it is closed.

    Args:
        workers: processes; more than the rank has streams are not started.
        prefetch: micro-batches that each of them keeps ready.
        state: where to continue; it must hold the streams of this rank, and may hold others.
        stores: see ``WorkerDataset``.

    Raises:
        UserError: when the state belongs to other data, for a mistake that a worker met, and when a worker died or
            did not answer: the row it was at is named.
    """
    state = state or PlanState.at_beginning(mixture)
    refuse_other_data(mixture, state)
    turns = list_turns(mixture, rank, world, state.step)
    served = sorted(set(turns))
    states = {index: state.streams[index] for index in served if index in state.streams}
    count = max(1, min(workers, len(served)))
    options: dict[str, Any] = {}
    if workers:
        ensure_open_files(count, prefetch)
        # pauses of an outage are no hang; only sources that are read shard by shard come over a network
        outage = mixture.max_outage if any(isinstance(s, ShardedSource) for s in mixture.sources) else 0.0
        options = {
            "num_workers": 1,
            "prefetch_factor": prefetch,
            "timeout": mixture.patience + outage,
            "worker_init_fn": isolate_worker,
            "multiprocessing_context": FORK,
        }
    owner = {stream: i % count for i, stream in enumerate(served)}
    crew = [
        Worker(
            WorkerDataset(mixture, tasks, tuple(t for t in turns if owner[t] == number), states, stores),
            options,
        )
        for number in range(count)
    ]
    by_stream = {stream: crew[number] for stream, number in owner.items()}
    places = len(range(rank, mixture.micro_batches, world))
    return iterate_steps(mixture, state.step, states, turns, by_stream, places)


def refuse_other_data(mixture: Mixture, state: PlanState) -> None:
    """Refuse to continue with other data than those of a checkpoint.

    Raises:
        UserError: naming the dataset that changed, or what may have.
    """
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


class Worker:
    """A data worker that serves the streams of a dataset; without ``options``, this process itself.

    Args:
        options: of torch's ``DataLoader``.

    Raises:
        UserError: when the system has no files, memory or processes left for it.
    """

    def __init__(self, dataset: WorkerDataset, options: Mapping[str, Any]) -> None:
        self.dataset = dataset
        if options:
            WORKERS[id(dataset)] = dataset
        with explain_worker_faults(dataset):
            self.batches: Iterator[MicroBatch | Failure] = iter(
                DataLoader(dataset, batch_size=None, **options)
            )

    def take_next(self) -> MicroBatch:
        """Return the next micro-batch.

        Raises:
            UserError: for a mistake that the worker met, or naming the row that it was at when it died.
        """
        with explain_worker_faults(self.dataset):
            micro = next(self.batches)
        if isinstance(micro, Failure):
            raise UserError(micro.message)
        return micro


def isolate_worker(worker: int) -> None:
    """Leave the run's process group: launchers signal all of it, and a run that is to save still needs its data.

    So a worker has to see by itself when its run is gone; torch's own look comes only while nothing is being read. A
    Ctrl-C is for the run alone, also where it is sent to every process: a worker ends with its run, without a word.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # in place of the run's handler, which a fork inherits
    sys.excepthook = ignore_cut_connections
    os.setpgid(0, 0)
    if (run := multiprocessing.parent_process()) is not None:
        end_with_parent("", run.pid)


def iterate_steps(
    mixture: Mixture,
    step: int,
    states: Mapping[int, StreamState],
    turns: Sequence[int],
    workers: Mapping[int, Worker],
    places: int,
) -> Generator[StepBatch, None, None]:
    """Take micro-batches from the workers in turn and put them together to steps.

    Args:
        step: steps that are done. states: of streams that were begun. workers: by the streams that they serve.
        places: micro-batches in a step of this rank.
    """
    streams = dict(states)
    serving = itertools.cycle(turns)
    for number in itertools.count(step + 1):
        taken = []
        for index in itertools.islice(serving, places):
            micro = workers[index].take_next()
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
            PlanState(number, dict(streams), mixture.fingerprint, mixture.source_fingerprints),
            tuple(notice for micro in taken for notice in micro.notices),
        )
