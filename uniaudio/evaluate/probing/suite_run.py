"""A suite on several models: the scores of all tasks by kind and protocol, their averages, and what was measured on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from torch import Tensor

from uniaudio.console import WorkProgress, format_number
from uniaudio.data.skipped_rows import Skip
from uniaudio.evaluate.probing.class_scores import ProbeScores
from uniaudio.evaluate.probing.finite_embeddings import find_broken_clips
from uniaudio.evaluate.probing.lost_classes import UnmeasurableTaskError
from uniaudio.evaluate.probing.retrieval_probes import TextModel
from uniaudio.evaluate.probing.suite import Suite
from uniaudio.evaluate.probing.suite_averages import TaskWeight, average_scores
from uniaudio.evaluate.probing.task_embeddings import Protocol, drop_rows, embed_task
from uniaudio.evaluate.probing.task_rows import TaskRows, hash_contents, read_task
from uniaudio.evaluate.probing.task_scores import score_task
from uniaudio.evaluate.probing.task_summaries import summarize_task, summarize_unmeasured_task
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.model_hash import hash_model


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
    whiten: bool = False,
) -> dict[str, Any]:
    """Embed and probe every task with every model.

    A task of which too few rows can be used has no scores, see ``summarize_unmeasured_task``, and neither has a model
    of a task of which it gives too many embeddings that are not finite.

    Args:
        layers: also probe every hidden state; the scores are then those of the last, which is the frames.
        whiten: whiten the embeddings of every model and layer first, see ``score_task``.

    Returns:
        What ``uniaudio probe --suite`` writes, see docs/evaluation-probes.md.

    Raises:
        UserError: for events and frames without the order of time; where the text model cannot be loaded.
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
        whiten,
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
        "whitened": whiten,
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
        digests: of the encoders. reader: for retrieval tasks. whiten: see ``score_task``; stored embeddings are those
            before it.
    """

    encoders: Mapping[str, AudioEncoder]
    digests: Mapping[str, str]
    protocol: Protocol
    seeds: int
    layers: bool
    reader: TextModel | None
    whiten: bool

    def probe_task(
        self, rows: TaskRows, bars: SuiteProgress
    ) -> tuple[dict[str, list[ProbeScores]], dict[str, Any], TaskWeight | None]:
        """Return the scores of a task by model and hidden state, what a reader must know of it, and what it counts.

        A task of which too few rows can be used has no weight and no scores.
        """
        data_sha256 = hash_contents(rows.rows())  # the files stay in memory for decoding
        broken: dict[int, Skip] = {}
        unscored: dict[str, str] = {}
        bars.begin_task()
        try:
            probed = self.probe_models(rows, data_sha256, broken, unscored, bars)
            while any(one.known < len(broken) for one in probed.values()):
                # a later model has left clips out: all are scored on the same ones, with embeddings from the cache
                probed = self.probe_models(rows, data_sha256, broken, unscored, bars)
            if not probed:
                raise refuse_unscored_task(rows, unscored)
        except UnmeasurableTaskError as problem:
            bars.count_unmeasured(str(problem))
            return {}, summarize_unmeasured_task(rows, problem, data_sha256), None
        last = list(probed.values())[-1]
        weight = TaskWeight(last.rows.weight, rows.task.domain, rows.task.private, rows.task.unseen)
        facts = summarize_task(last.rows, last.notices, data_sha256, unscored)
        return {model: one.scores for model, one in probed.items()}, facts, weight

    def probe_models(
        self,
        rows: TaskRows,
        data_sha256: str,
        broken: dict[int, Skip],
        unscored: dict[str, str],
        bars: SuiteProgress,
    ) -> dict[str, ProbedModel]:
        """Probe every model on a task without the clips that are not finite by it or, as far as is known, another one.

        Args:
            broken: why clips are left out, by their number (``TaskRows.numbers``); gets those that are found.
            unscored: why models are left out; gets those whose own clips are too few, which cost the others nothing.

        Raises:
            UnmeasurableTaskError: when too few clips can be used, whatever the model.
        """
        probed = {}
        for model, encoder in self.encoders.items():
            if model in unscored:
                continue
            usable, states = embed_task(
                encoder, self.digests[model], rows, data_sha256, self.protocol, self.layers, bars.count_clips
            )
            try:
                skips = find_broken_clips(usable, states, model)
                usable.drop(skips)
            except UnmeasurableTaskError as problem:
                unscored[model] = problem.reason
                bars.count_unscored(f"task {rows.name}: {model} is not scored: {problem.reason}")
                continue
            numbers = usable.numbers.tolist()
            for row, skip in skips.items():
                broken.setdefault(numbers[row], skip)
            known = {row: broken[number] for row, number in enumerate(numbers) if number in broken}
            usable, states = drop_rows(usable, states, known)
            scores = [
                score_task(
                    usable, state, encoder.frame_rate, self.protocol, self.seeds, self.reader, self.whiten
                )
                for state in states
            ]
            probed[model] = ProbedModel(scores, usable, states[0].notices, len(broken))
            bars.count_probed(rows.name, model)
        return probed


@dataclass(frozen=True)
class ProbedModel:
    """The scores of a model on a task by hidden state.

    Args:
        rows: those that were used. notices: as in ``Embedded``. known: how many clips were left out by then because
            they are not finite by some model.
    """

    scores: list[ProbeScores]
    rows: TaskRows
    notices: Tensor
    known: int


def refuse_unscored_task(rows: TaskRows, unscored: Mapping[str, str]) -> UnmeasurableTaskError:
    """Return the error of a task that no model has scores of.

    Args:
        unscored: the reasons by model.
    """
    reason = "; ".join(
        reason if len(unscored) == 1 else f"{model}: {reason}" for model, reason in unscored.items()
    )
    return UnmeasurableTaskError(f"task {rows.name}: {reason}", reason, rows.skipped)


class SuiteProgress:
    """Two bars: the clips that are embedded, with the audio in a second, and the models that are probed on a task.

    Attributes:
        waiting: the models that the task is not counted for yet; what is probed again is not counted again.
    """

    def __init__(self, progress: WorkProgress, tasks: Sequence[TaskRows], models: int) -> None:
        self.progress, self.models, self.waiting = progress, models, 0
        self.embedding = progress.begin("embedding", sum(len(rows.answers) for rows in tasks) * models)
        self.probing = progress.begin("probing", len(tasks) * models, unit="models and tasks")
        self.started, self.audio_seconds = time.monotonic(), 0.0

    def begin_task(self) -> None:
        """Begin with another task."""
        self.waiting = self.models

    def count_clips(self, clips: int, seconds: float) -> None:
        """Count clips that were embedded, and their seconds of audio: 0 where the cache had them."""
        if not self.waiting:
            return
        self.audio_seconds += seconds
        rate = self.audio_seconds / max(time.monotonic() - self.started, 1e-9)
        shown = f"{format_number(rate)} audio-s/s" if self.audio_seconds else "cached"
        self.progress.count(self.embedding, clips, shown)

    def count_probed(self, task: str, model: str) -> None:
        """Count a model that was probed on a task."""
        if not self.waiting:
            return
        self.waiting -= 1
        self.progress.count(self.probing, rate=task)
        if not self.progress.console.is_terminal:
            self.progress.console.print(f"probed {model} on {task}")

    def count_unscored(self, reason: str) -> None:
        """Count a model that has no scores of a task, and say why."""
        self.waiting -= 1
        self.progress.count(self.probing)
        self.progress.console.print(reason, style="yellow", soft_wrap=True)

    def count_unmeasured(self, reason: str) -> None:
        """Count the models that are not probed on a task, and say why."""
        self.progress.count(self.probing, self.waiting)
        self.waiting = 0
        self.progress.console.print(reason, style="yellow", soft_wrap=True)
