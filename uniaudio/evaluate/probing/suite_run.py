"""A suite on several models: scores of all tasks, averages, and what was measured on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from torch import Tensor

from uniaudio.console import WorkProgress, format_number
from uniaudio.data.audio import ADVICE
from uniaudio.evaluate.probing.suite import Suite
from uniaudio.evaluate.probing.task_embeddings import Protocol, embed_task
from uniaudio.evaluate.probing.task_rows import TaskRows, hash_contents, read_task
from uniaudio.evaluate.probing.task_scores import ProbeScores, score_task
from uniaudio.evaluate.probing.text_model import TextModel
from uniaudio.evaluate.probing.weighted_average import TaskWeight, average_scores
from uniaudio.feature_cache import hash_model
from uniaudio.model.encoders.base import AudioEncoder


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

    Args:
        layers: also probe every hidden state; the scores are then those of the last, which is the frames.

    Returns:
        What ``uniaudio probe --suite`` writes, see docs/evaluation-probes.md.
    """
    retrieves = any(rows.task.kind == "retrieval" for rows in tasks)
    reader = TextModel(suite.text_model) if suite.text_model is not None and retrieves else None
    digests = {name: hash_model(encoder) for name, encoder in encoders.items()}
    data = {rows.name: hash_contents(rows.rows()) for rows in tasks}
    swept: dict[str, dict[str, list[ProbeScores]]] = {}
    facts: dict[str, dict[str, Any]] = {}
    task_weights: dict[str, TaskWeight] = {}
    with WorkProgress(console, "clips") as progress:
        clips = sum(len(rows.answers) for rows in tasks) * len(encoders)
        embedding, probing = (
            progress.begin("embedding", clips),
            progress.begin("probing", len(tasks) * len(encoders)),
        )
        started, audio_seconds = time.monotonic(), 0.0

        def advance(count: int, seconds: float) -> None:
            nonlocal audio_seconds
            audio_seconds += seconds
            rate = audio_seconds / max(time.monotonic() - started, 1e-9)
            shown = f"{format_number(rate)} audio-s/s" if audio_seconds else "cached"
            progress.count(embedding, count, shown)

        for rows in tasks:
            swept[rows.name] = {}
            for model, encoder in encoders.items():
                usable, states = embed_task(
                    encoder, digests[model], rows, data[rows.name], protocol, layers, advance
                )
                swept[rows.name][model] = [
                    score_task(usable, state, encoder.frame_rate, protocol, seeds, reader) for state in states
                ]
                progress.count(probing, rate=rows.name)
                if not console.is_terminal:
                    console.print(f"{rows.name}: {model} is probed")
            facts[rows.name] = summarize_task(usable, states[0].notices, data[rows.name])
            task_weights[rows.name] = TaskWeight(
                usable.weight, rows.task.domain, rows.task.private, rows.task.unseen
            )
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


def summarize_task(rows: TaskRows, notices: Tensor, data_sha256: str) -> dict[str, Any]:
    """Return what a reader of the scores must know of a task; numbers of clips are those of one fold on average.

    Args:
        rows: those that were used. notices: as in ``Embedded``.
    """
    folds = len(rows.trials)
    return {
        "kind": rows.task.kind,
        "domain": rows.task.domain,
        "metric": rows.task.metric,
        **({"unseen": True} if rows.task.unseen else {}),
        "weight": rows.weight,
        "classes": len(rows.classes),
        "train": round(sum(len(trial.train) for trial in rows.trials) / folds),
        "test": round(sum(len(trial.test) for trial in rows.trials) / folds),
        "folds": folds if folds > 1 else None,
        "skipped": [asdict(skip) for skip in rows.skipped],
        "notices": {kind: n for kind, n in zip(ADVICE, notices.tolist(), strict=True) if n},
        "data_sha256": data_sha256,
        "license": rows.card.license or None,
    }
