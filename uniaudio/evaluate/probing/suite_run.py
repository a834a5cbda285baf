"""A suite on several models: the scores of all tasks by kind and protocol, their averages, and what was measured on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from uniaudio.console import WorkProgress, format_number
from uniaudio.errors import prefix_user_errors
from uniaudio.evaluate.probing.class_scores import ProbeScores
from uniaudio.evaluate.probing.clip_probes import KINDS, Fold, ProbeKind, probe_folds
from uniaudio.evaluate.probing.frame_probes import score_frames
from uniaudio.evaluate.probing.lost_classes import UnmeasurableTaskError
from uniaudio.evaluate.probing.retrieval_probes import TextModel, score_retrieval
from uniaudio.evaluate.probing.suite import Suite
from uniaudio.evaluate.probing.suite_averages import TaskWeight, average_scores
from uniaudio.evaluate.probing.task_embeddings import (
    Embedded,
    Protocol,
    embed_task,
    encode_task,
    require_finite,
)
from uniaudio.evaluate.probing.task_rows import Indices, TaskRows, hash_contents, read_task
from uniaudio.evaluate.probing.task_summaries import summarize_task, summarize_unmeasured_task
from uniaudio.evaluate.probing.xares import XaresFold, score_xares_folds
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.model_hash import hash_model


def score_task(
    rows: TaskRows,
    embedded: Embedded,
    rate: float,
    protocol: Protocol,
    seeds: int,
    reader: TextModel | None = None,
) -> ProbeScores:
    """Probe one layer of one model on one task: ``{probe: {"mean", "std"}}``, all scores in [0, 1]; for classes of
    clips also ``metrics``, see ``probe_folds``.

    Args:
        rate: frames per second of the encoder, for events. reader: for retrieval.
    """
    if rows.task.kind == "frame":
        return score_frames(rows, embedded, rate, protocol, seeds)
    if rows.task.kind == "retrieval":
        assert reader is not None, "a suite with retrieval tasks names a text model"
        return score_retrieval(rows, embedded, reader, protocol, seeds)
    targets = build_class_targets(rows)
    if protocol == "masked":
        folds = [build_fold(embedded, targets, trial.train, trial.test) for trial in rows.trials]
        return probe_folds(
            folds, len(rows.classes), seeds, kinds=rows.task.kinds, metric=rows.task.score_metric
        )
    chosen = []
    for trial in rows.trials:
        fold = build_fold(embedded, targets, trial.train, trial.test)
        valid = embedded.pieces_of(trial.test if trial.valid is None else trial.valid)
        chosen.append(XaresFold(fold, embedded.values[valid], targets[embedded.owner[valid]]))
    return score_xares_folds(
        chosen,
        len(rows.classes),
        seeds,
        rows.task.epochs,
        rows.task.batch,
        rows.task.kinds,
        rows.task.score_metric,
    )


def probe_held(
    encoder: AudioEncoder, tasks: Sequence[TaskRows], seeds: int, kinds: Sequence[ProbeKind] = KINDS
) -> dict[str, ProbeScores]:
    """Probe an encoder on tasks whose clips are held in memory, by these kinds of probes; nothing is kept on disk.

    Returns:
        The scores by the name of the task.

    Raises:
        UserError: for embeddings that are not finite.
    """
    scores = {}
    for rows in tasks:
        (embedded,), _ = encode_task(encoder, rows, "masked")
        require_finite(rows, [embedded])
        task = rows.task.model_copy(update={"probes": tuple(kinds)})
        scores[rows.name] = score_task(
            replace(rows, task=task), embedded, encoder.frame_rate, "masked", seeds
        )
    return scores


def build_class_targets(rows: TaskRows) -> Tensor:
    """Return the class index of every row ``[N]`` int64, or its classes ``[N, K]`` float32 of 0 and 1."""
    index = rows.class_index()
    if rows.task.kind == "clip":
        return torch.tensor([index[label] for label in rows.answers])
    targets = torch.zeros(len(rows.answers), len(index))
    for row, labels in enumerate(rows.answers):
        targets[row, [index[label] for label in labels]] = 1.0
    return targets


def build_fold(embedded: Embedded, targets: Tensor, train: Indices, test: Indices) -> Fold:
    """Return the pieces of the rows that train and test, each with the target of its row."""
    parts = [embedded.pieces_of(rows) for rows in (train, test)]
    (train_x, train_y), (test_x, test_y) = (
        (embedded.values[pieces], targets[embedded.owner[pieces]]) for pieces in parts
    )
    return Fold(train_x, train_y, test_x, test_y)


def read_tasks(suite: Suite) -> list[TaskRows]:
    """Read and check the rows of all tasks, before any audio or model is.

    Raises:
        UserError: for the first task that does not fit its data.
    """
    return [read_task(name, task, card) for name, (task, card) in suite.tasks.items()]


def run_suite(
    suite: Suite,
    tasks: Sequence[TaskRows],
    encoders: Mapping[str, AudioEncoder],
    protocol: Protocol,
    seeds: int,
    layers: bool,
    console: Console,
) -> dict[str, Any]:
    """Embed and probe every task with every model.

    A task of which too few rows can be used has no scores, see ``summarize_unmeasured_task``.

    Args:
        layers: also probe every hidden state; the scores are then those of the last, which is the frames.

    Returns:
        What ``uniaudio probe --suite`` writes, see docs/evaluation-probes.md.

    Raises:
        UserError: for events and frames without the order of time; for embeddings that are not finite; where the text
            model cannot be loaded.
    """
    retrieves = any(rows.task.kind == "retrieval" for rows in tasks)
    reader = None
    if suite.text_model is not None and retrieves:
        reader = TextModel(suite.text_model, has_weights=protocol == "masked")
    probing = SuiteModels(
        encoders,
        {name: hash_model(encoder) for name, encoder in encoders.items()},
        protocol,
        seeds,
        layers,
        reader,
    )
    swept: dict[str, dict[str, list[ProbeScores]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    task_weights: dict[str, TaskWeight] = {}
    with WorkProgress(console, "clips") as progress:
        bars = SuiteProgress(progress, tasks, len(encoders))
        for rows in tasks:
            scored, facts[rows.name], weight = probing.probe_task(rows, bars)
            if weight is not None:
                swept[rows.name], task_weights[rows.name] = scored, weight
    scores = {task: {model: states[-1] for model, states in models.items()} for task, models in swept.items()}
    result: dict[str, Any] = {
        "suite": suite.name,
        "protocol": protocol,
        "seeds": seeds,
        "models": list(encoders),
        "tasks": facts,
        "scores": scores,
        "average": average_scores(scores, task_weights),
    }
    return {**result, "layers": swept} if layers else result


@dataclass(frozen=True)
class SuiteModels:
    """The models that a suite is probed with, and how; see ``run_suite``.

    Args:
        digests: of the encoders. reader: for retrieval tasks.
    """

    encoders: Mapping[str, AudioEncoder]
    digests: Mapping[str, str]
    protocol: Protocol
    seeds: int
    layers: bool
    reader: TextModel | None

    def probe_task(
        self, rows: TaskRows, bars: SuiteProgress
    ) -> tuple[dict[str, list[ProbeScores]], dict[str, Any], TaskWeight | None]:
        """Return the scores of a task by model and hidden state, what a reader must know of it, and what it counts.

        A task of which too few rows can be used has no weight, and its scores do not count.
        """
        data_sha256 = hash_contents(rows.rows())  # the files stay in memory for decoding
        scored: dict[str, list[ProbeScores]] = {}
        try:
            for model, encoder in self.encoders.items():
                usable, states = embed_task(
                    encoder,
                    self.digests[model],
                    rows,
                    data_sha256,
                    self.protocol,
                    self.layers,
                    bars.count_clips,
                )
                with prefix_user_errors(model):
                    require_finite(usable, states)
                scored[model] = [
                    score_task(usable, state, encoder.frame_rate, self.protocol, self.seeds, self.reader)
                    for state in states
                ]
                bars.count_probed(rows.name, model)
        except UnmeasurableTaskError as problem:
            bars.count_unmeasured(str(problem), len(self.encoders) - len(scored))
            return scored, summarize_unmeasured_task(rows, problem, data_sha256), None
        weight = TaskWeight(usable.weight, rows.task.domain, rows.task.private, rows.task.unseen)
        return scored, summarize_task(usable, states[0].notices, data_sha256), weight


class SuiteProgress:
    """Two bars: the clips that are embedded, with the audio in a second, and the models that are probed on a task."""

    def __init__(self, progress: WorkProgress, tasks: Sequence[TaskRows], models: int) -> None:
        self.progress = progress
        self.embedding = progress.begin("embedding", sum(len(rows.answers) for rows in tasks) * models)
        self.probing = progress.begin("probing", len(tasks) * models)
        self.started, self.audio_seconds = time.monotonic(), 0.0

    def count_clips(self, clips: int, seconds: float) -> None:
        """Count clips that were embedded, and their seconds of audio: 0 where the cache had them."""
        self.audio_seconds += seconds
        rate = self.audio_seconds / max(time.monotonic() - self.started, 1e-9)
        shown = f"{format_number(rate)} audio-s/s" if self.audio_seconds else "cached"
        self.progress.count(self.embedding, clips, shown)

    def count_probed(self, task: str, model: str) -> None:
        """Count a model that was probed on a task."""
        self.progress.count(self.probing, rate=task)
        if not self.progress.console.is_terminal:
            self.progress.console.print(f"{task}: {model} is probed")

    def count_unmeasured(self, reason: str, models: int) -> None:
        """Count the models that are not probed on a task, and say why."""
        self.progress.count(self.probing, models)
        self.progress.console.print(reason, style="yellow", soft_wrap=True)
