"""The figures of an evaluation set from what a model answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from uniaudio.data.recipe import EvalEntry
from uniaudio.data.template import Scoring
from uniaudio.data.tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.evaluate.asking import Answered, AskSettings, ask_entry, label_ids
from uniaudio.evaluate.intervals import interval
from uniaudio.evaluate.label_scores import label_figures, probabilities
from uniaudio.evaluate.metrics import is_right, measures
from uniaudio.model.audio_lm import AudioLM


def evaluate_entry(
    model: AudioLM,
    format: ChatFormat,
    entry: EvalEntry,
    settings: AskSettings,
    told: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Ask one evaluation set and return its figures and every answer; every process must call it.

    Returns:
        ``task``, ``metric``, ``score`` with its ``interval`` of 95 %, ``metrics`` and ``intervals`` of it and its
        companions, ``right`` (share of exactly right answers), ``loss`` (per answer token, of the first right answer),
        ``examples``, ``skipped`` (rows with reasons), ``answers``; for a closed set ``labels``, see ``label_figures``.

    Raises:
        UserError: when no row can be used, or nothing is left of the right answers after normalising.
    """
    model.eval()
    whole = ask_entry(model, format, entry, settings, told)
    scoring, answered = entry.template.scoring, whole.answered
    answers, references = [a.answer for a in answered], [a.references for a in answered]
    found = measures(answers, references, scoring)
    metrics = {name: measure.score() for name, measure in found.items()}
    empty = [name for name, value in metrics.items() if not np.isfinite(value)]
    if empty:
        raise UserError(
            f"{entry.name}: {empty[0]} has nothing to compare: all right answers are empty after normalising; "
            f"set scoring.normalize of template {entry.template.task} to another than {scoring.normalize}"
        )
    intervals = {name: interval(len(answered), measure.resampled) for name, measure in found.items()}
    told_answers = [told_of(item, scoring) for item in answered]
    result = {
        "task": entry.template.task,
        "metric": scoring.metric,
        "score": metrics[scoring.metric],
        "interval": intervals[scoring.metric],
        "metrics": metrics,
        "intervals": intervals,
        "right": sum(item["right"] for item in told_answers) / len(answered),
        "loss": whole.loss / whole.tokens,
        "examples": len(answered),
        "skipped": [asdict(skip) for _, skip in whole.skips],
    }
    if settings.labels and entry.template.labels:
        result["labels"] = closed_set(entry.template.labels, answered, format, scoring, told_answers)
    return {**result, "answers": told_answers}


def told_of(item: Answered, scoring: Scoring) -> dict[str, Any]:
    """Return what is written of one answer."""
    return {
        "id": item.id,
        "reference": item.references[0],
        "answer": item.answer,
        "right": is_right(item.answer, item.references, scoring),
    }


def closed_set(
    names: Sequence[str],
    answered: Sequence[Answered],
    format: ChatFormat,
    scoring: Scoring,
    told_answers: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return the figures of the labels, and add to each answer the likeliest ``label`` and its probability,
    ``confidence``.
    """
    tokens = label_ids(names, format).lengths.tolist()
    scores = np.array([item.log_likelihoods for item in answered], np.float64)
    chances = probabilities(scores, tokens, scoring.likelihood)
    truth = np.array([[name in item.references for name in names] for item in answered])
    for told, row in zip(told_answers, chances, strict=True):
        best = int(row.argmax())
        told |= {"label": names[best], "confidence": float(row[best])}
    return label_figures(names, chances, truth)


def answers_table(results: dict[str, dict[str, Any]]) -> Table:
    """Lay out the figures of several evaluation sets; below a score stands its 95 % interval.

    Results of before there were intervals and labels are shown too.
    """
    table = Table(title="answers", title_justify="left")
    table.add_column("set", overflow="fold")
    table.add_column("metric", no_wrap=True)
    for column in ("score", "right", "by label", "loss", "rows"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        labels, asked, skipped = result.get("labels"), result["examples"], len(result["skipped"])
        table.add_row(
            name,
            result["metric"],
            with_interval(result["score"], result.get("interval")),
            f"{result['right']:.1%}",
            with_interval(labels["accuracy"], labels["interval"]) if labels else "",
            f"{result['loss']:.3f}",
            f"{asked} of {asked + skipped}" if skipped else str(asked),
        )
    return table


def with_interval(value: float, ends: Sequence[float] | None) -> str:
    """Return a score, and its interval in a line below."""
    return f"{value:.3f}" + (f"\n{ends[0]:.3f}–{ends[1]:.3f}" if ends else "")
