"""The figures of an evaluation set from what a model answered."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table

from uniaudio.data.eval_examples import EvalExamples
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.template import Template
from uniaudio.data.template_file import Scoring
from uniaudio.evaluate.generation.predictions import (
    Prediction,
    PredictionSettings,
    explain_no_row,
    predict_entry,
    tokenize_labels,
)
from uniaudio.evaluate.generation.window_answers import join_windows
from uniaudio.evaluate.metrics.classification import (
    choose_label_metric,
    compute_label_metrics,
    compute_probabilities,
)
from uniaudio.evaluate.metrics.intervals import Summed, compute_interval
from uniaudio.evaluate.metrics.text_metrics import (
    is_right,
    list_class_companions,
    measure_with_companions,
)
from uniaudio.model.audio_lm import AudioLM
from uniaudio.run_records import describe_undefined_scores


def evaluate_entry(
    model: AudioLM,
    format: ChatFormat,
    examples: EvalExamples,
    settings: PredictionSettings,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Ask one evaluation set and return its figures and every answer; every process must call it.

    Returns:
        ``task``, ``metric``, ``score`` with its ``interval`` of 95 % (None where the answers leave the metric
        undefined), ``metrics`` and ``intervals`` of it and its companions, ``undefined`` (only where there are such
        metrics: by name, why), ``right`` (share of exactly right answers), ``loss`` (per answer token, of the first
        right answer; None where all clips were cut into windows whose answers are joined), ``examples`` (rows),
        ``rows`` (of the whole split, None where that is not known), ``skipped`` (rows with reasons),
        ``cut`` (answers that had not ended after ``max_new_tokens``), ``max_new_tokens``, ``answers``; for a closed set
        ``labels``, see ``compute_label_metrics``. Of a set of which no row can be used the metric is undefined, and
        ``right`` and ``loss`` are None.
    """
    model.eval()
    whole = predict_entry(model, format, examples, settings, advance)
    entry, scoring = examples.entry, examples.entry.template.scoring
    labels = entry.template.labels if settings.labels and whole.answered else None
    label_tokens = tokenize_labels(labels, format).lengths.tolist() if labels else []
    answered = join_windows(whole.answered, scoring, label_tokens)
    answers, references = [a.answer for a in answered], [a.references for a in answered]
    is_closed = bool(entry.template.labels) and not entry.template.multilabel
    measured: dict[str, Summed] = {}
    undefined: dict[str, str] = {scoring.metric: explain_no_row(examples, whole)}
    if answered:
        measured, undefined = measure_with_companions(answers, references, scoring, is_closed)
    metrics = {name: measure.score() for name, measure in measured.items()}
    intervals = {
        name: compute_interval(len(answered), measure.resample) for name, measure in measured.items()
    }
    answer_records = [describe_answer(item, scoring) for item in answered]
    loss, tokens = whole.sum_losses()
    result = {
        "task": entry.template.task,
        "metric": scoring.metric,
        "score": metrics.get(scoring.metric),
        "interval": intervals.get(scoring.metric),
        "metrics": metrics,
        "intervals": intervals,
        **({"undefined": undefined} if undefined else {}),
        "right": sum(item["right"] for item in answer_records) / len(answered) if answered else None,
        "loss": loss / tokens if tokens else None,
        "examples": len(answered),
        "rows": len(answered) + len(whole.skips) if examples.sample.addresses is None else examples.rows,
        "cut": sum(item.is_cut for item in answered),
        "max_new_tokens": settings.max_new_tokens,
        "skipped": [asdict(skip) for _, skip in whole.skips],
    }
    if labels:
        result["labels"] = score_closed_set(entry.template, answered, label_tokens, answer_records)
    return {**result, "answers": answer_records}


def describe_answer(item: Prediction, scoring: Scoring) -> dict[str, Any]:
    """Return what is written of one answer; of a long clip also the answers to its windows, with their times."""
    record: dict[str, Any] = {
        "id": item.id,
        "reference": item.references[0],
        "answer": item.answer,
        "right": is_right(item.answer, item.references, scoring),
    }
    if len(item.references) > 1:
        record["references"] = list(item.references)
    if item.windows:
        record["windows"] = [
            {"start": round(start, 3), "end": round(end, 3), "answer": part.answer}
            for part in item.windows
            for start, end in [part.window or (0.0, 0.0)]
        ]
    return record


def score_closed_set(
    template: Template,
    answered: Sequence[Prediction],
    label_tokens: Sequence[int],
    answer_records: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Return the figures of the labels, and add to each answer the likeliest ``label`` and its probability,
    ``confidence``.

    Args:
        label_tokens: of every label, the end of turn included.
    """
    names = template.labels or ()
    scores = np.array([item.log_likelihoods for item in answered], np.float64)
    chances = compute_probabilities(scores, label_tokens, template.scoring.likelihood)
    right = [
        {label for text in item.references for label in template.split_labels(text)} for item in answered
    ]
    truth = np.array([[name in labels for name in names] for labels in right])
    for record, row in zip(answer_records, chances, strict=True):
        best = int(row.argmax())
        record |= {"label": names[best], "confidence": float(row[best])}
    return compute_label_metrics(names, chances, truth)


def build_answers_table(results: dict[str, dict[str, Any]]) -> Table:
    """Lay out the figures of several evaluation sets; below a score stands its 95 % interval."""
    table = Table(title="answers", title_justify="left")
    table.add_column("set", overflow="fold")
    table.add_column("metric", no_wrap=True)
    for column in ("score", "right", "by label", "loss", "rows"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, result in results.items():
        by_label = ""
        if labels := result.get("labels"):
            key = choose_label_metric(result["metric"], labels)
            ends = labels["interval"] if key == "accuracy" else labels["intervals"][key]
            by_label = format_with_interval(labels[key], ends)
        companions = list_class_companions(result)
        score = format_with_interval(result["score"], result.get("interval"))
        table.add_row(
            name,
            # a companion stands in the line of its figure, below the two lines of the score and its interval
            "\n".join([result["metric"], *[""] * score.count("\n"), *companions]),
            "\n".join([score, *(f"{value:.3f}" for value in companions.values())]),
            "" if result["right"] is None else f"{result['right']:.1%}",
            by_label,
            "" if result["loss"] is None else f"{result['loss']:.3f}",
            format_row_counts(result),
        )
    notes = [
        note
        for name, result in results.items()
        for note in (*describe_undefined_scores(name, result), describe_cut_answers(name, result))
        if note
    ]
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def format_row_counts(result: Mapping[str, Any]) -> str:
    """Say how many rows were answered, of how many there are, and how many could not be used."""
    answered, skipped, rows = result["examples"], len(result["skipped"]), result["rows"]
    text = str(answered) if rows == answered else f"{answered} of {'?' if rows is None else rows}"
    return f"{text} rows" + (f"\n{skipped} skipped" if skipped else "")


def describe_cut_answers(name: str, result: Mapping[str, Any]) -> str:
    """Say that answers were cut and what to do about it; nothing where none was."""
    if not result["cut"]:
        return ""
    count = f"{result['cut']} of {result['examples']} answers"
    return (
        f"{name}: {count} were cut off after {result['max_new_tokens']} tokens; raise "
        "evaluate.max_new_tokens if they should be longer"
    )


def format_with_interval(value: float | None, ends: Sequence[float] | None) -> str:
    """Return a score, and its interval in a line below; a dash where the score is undefined."""
    if value is None:
        return "–"
    return f"{value:.3f}" + (f"\n{ends[0]:.3f}–{ends[1]:.3f}" if ends else "")
