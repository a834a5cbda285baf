"""The scores of XARES-LLM, the suite of the Audio Encoder Capability Challenge 2026, from answers that were given.

Texts are compared as the public code of the suite does it: NFKC, lower case, hyphens as blanks, no ASCII punctuation,
white space as one blank; against the first right answer. All scores lie between 0 and 1, more is better, and the
overall score is their plain mean.

=========  ========================================================================================================
metric     score
=========  ========================================================================================================
accuracy   Accuracy: share of answers that equal the right one as a whole; also where the metric is uar or macro_f1
wer, cer   iWER, iCER: ``max(0, 1 - error rate)`` over all clips together
map        mAP of lists with ``;`` between the tags: each tag is there or not, so this ranks nothing
others     not scored: FENSE and DATE need models from the network
=========  ========================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from uniaudio.console import make_table
from uniaudio.evaluate.metrics.class_averages import CLASS_METRICS
from uniaudio.evaluate.metrics.intervals import Array, Summed, compute_interval, make_mean
from uniaudio.evaluate.metrics.normalization import normalize_challenge_text
from uniaudio.evaluate.metrics.text_metrics import error_rate, tag_precision

SEPARATOR = ";"
NAMES = {"accuracy": "Accuracy", "wer": "iWER", "cer": "iCER", "map": "mAP"}
NOT_SCORED = "FENSE and DATE need models from the network"
NO_ANSWERS = "no row can be used"
NOTHING_TO_COMPARE = "all right answers are empty after normalizing"


def compute_challenge_score(
    metric: str, answers: Sequence[str], references: Sequence[str]
) -> dict[str, Any] | None:
    """Return the score of a set, or None where the suite has another metric than can be had here.

    Args:
        metric: of the template. references: the first right answer of each clip.

    Returns:
        ``metric``: its name in the suite; ``score``: not a number where no right answer has anything to compare;
        ``interval`` of 95 %.
    """
    if metric in CLASS_METRICS:  # what the suite says of classes is accuracy
        metric = "accuracy"
    if metric not in NAMES:
        return None
    measure = make_challenge_measure(metric, answers, references)
    interval = compute_interval(measure.clips, measure.resample)
    return {"metric": NAMES[metric], "score": measure.score(), "interval": interval}


def make_challenge_measure(metric: str, answers: Sequence[str], references: Sequence[str]) -> Summed:
    """Return the score as a function of sums over clips."""
    if metric == "map":  # the marks between the tags are punctuation, so the tags are taken apart first
        given, true = ([normalize_list(text) for text in texts] for texts in (answers, references))
        return tag_precision(given, [[text] for text in true], SEPARATOR)
    given, true = ([normalize_challenge_text(text) for text in texts] for texts in (answers, references))
    if metric == "accuracy":
        return make_mean(np.array([a == b for a, b in zip(given, true, strict=True)], np.float64))
    rate = error_rate(given, [[text] for text in true], metric)

    def invert_rate(sums: Array) -> Array:
        return np.maximum(0.0, 1.0 - rate.value(sums))

    return Summed(rate.rows, invert_rate)


def normalize_list(text: str) -> str:
    """Even out every tag of a list."""
    return SEPARATOR.join(normalize_challenge_text(tag) for tag in text.split(SEPARATOR))


def collect_challenge_scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the protocol's figures of results of ``evaluate_entry`` by name.

    Returns:
        ``protocol``, ``overall`` (None when nothing could be scored), ``scores``: name to ``metric``, ``score``,
        ``interval``; ``not_scored``: name to the reason.
    """
    scores: dict[str, dict[str, Any]] = {}
    missing = {}
    for name, result in results.items():
        if not result["answers"]:
            missing[name] = f"{result['metric']}: {NO_ANSWERS}"
            continue
        answers = [item["answer"] for item in result["answers"]]
        references = [item["reference"] for item in result["answers"]]
        scored = compute_challenge_score(result["metric"], answers, references)
        if scored is None:
            missing[name] = f"{result['metric']}: {NOT_SCORED}"
        elif not math.isfinite(scored["score"]):
            missing[name] = f"{result['metric']}: {NOTHING_TO_COMPARE}"
        else:
            scores[name] = scored
    values = [item["score"] for item in scores.values()]
    overall = sum(values) / len(values) if values else None
    return {"protocol": "xares-llm", "overall": overall, "scores": scores, "not_scored": missing}


def build_challenge_table(result: Mapping[str, Any]) -> Table:
    """Lay out what ``collect_challenge_scores`` returned."""
    table = make_table("xares-llm", "set", "metric", "score", "95 %", numbers=2)
    for name, item in result["scores"].items():
        low, high = item["interval"]
        table.add_row(name, item["metric"], f"{item['score']:.3f}", f"[{low:.3f}, {high:.3f}]")
    for name, reason in result["not_scored"].items():
        table.add_row(name, reason, "-", "")
    if result["overall"] is not None:
        table.add_row("overall", "mean", f"{result['overall']:.3f}", "", style="bold")
    return table
