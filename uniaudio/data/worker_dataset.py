"""The dataset of a data worker: planned rows are decoded, changed, asked about and packed to micro-batches."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from uniaudio.data.audio import ClipNotice
from uniaudio.data.batching import PlannedRow
from uniaudio.data.collate import collate
from uniaudio.data.mixture import Mixture, PlannedBatch, StreamState
from uniaudio.data.permutation import hash_parts
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import ClipSamples, decode_clips
from uniaudio.data.worker_faults import explain_worker_faults, share_tensors
from uniaudio.errors import RowError, UserError, convert_to_row_error
from uniaudio.feature_cache import FeatureStore, look_up_frames
from uniaudio.types import Batch, Example

Mask = tuple[int, int, int, int]
# workers inherit the mixture: compiled templates and the model's count of tokens cannot be sent to a new process, as
# Python would from version 3.14 on
FORK = multiprocessing.get_context("fork")
NAMED = 400  # bytes of a row's name that a worker leaves behind when it dies


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
    at: Any = field(default_factory=lambda: FORK.Array("c", NAMED))
    pid: Any = field(default_factory=lambda: FORK.Value("q", 0))

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
