"""Figures of a closed set from the log-likelihoods of its labels: accuracy, UAR, average precision, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit, softmax

from uniaudio.evaluate.metrics.class_averages import CLASS_METRICS, measure_class_averages
from uniaudio.evaluate.metrics.intervals import (
    Array,
    Summed,
    average_present,
    compute_interval,
    make_mean,
)

TINY = 1e-15  # probabilities nearer to 0 or 1 have log-odds of 34.5 either way
BINS = 15  # of equal width between 0 and 1, as Guo et al. 2017


def mean_average_precision(scores: NDArray[np.floating], truth: NDArray[Any], absent: bool = False) -> float:
    """Return the mean over classes of the average precision, see ``average_precision``.

    Args:
        scores: ``[N, K]``, any monotone function of the probabilities. truth: ``[N, K]`` of 0 and 1.
        absent: count a class without positives as 0, as X-ARES does by its metric, rather than leave it out.

    Returns:
        0 where no class has a positive.
    """
    present = np.flatnonzero(truth.any(0))
    if not len(present):
        return 0.0
    once = np.ones((1, len(truth)))
    each = [average_precision(scores[:, k], truth[:, k], once)[0] for k in present]
    return float(np.sum(each) / (truth.shape[1] if absent else len(present)))


def resample_precision(scores: Array, truth: NDArray[np.bool_], counts: Array) -> Array:
    """Return the mean average precision over the classes that occur in every resample ``[R]``.

    Args:
        scores: ``[N, K]``, higher for what is likelier. truth: ``[N, K]``.
        counts: ``[R, N]``: how often each clip counts in each of R resamples.
    """
    each = [average_precision(scores[:, k], truth[:, k], counts) for k in range(scores.shape[1])]
    return average_present(np.stack(each, 1))


def average_precision(scores: NDArray[np.floating], truth: NDArray[Any], counts: Array) -> Array:
    """Return the average precision of one class in every resample ``[R]``; not a number where it does not occur.

    ``AP = sum_i (recall_i - recall_(i-1)) * precision_i`` over the different scores from the highest on, as
    scikit-learn has it; clips of equal score come together.

    Args:
        scores: ``[N]``, higher for what is likelier. truth: ``[N]``. counts: as for ``resample_precision``.
    """
    order = np.argsort(-scores, kind="stable")
    # the last clip of every different score
    ends = np.flatnonzero(np.diff(scores[order], append=np.nan) != 0)
    weights = counts[:, order]
    hits = np.cumsum(weights * truth[order], 1)[:, ends]
    named = np.cumsum(weights, 1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        hit_share = hits / hits[:, -1:]
        precision = np.where(named > 0, hits / named, 0.0)
    return (np.diff(hit_share, prepend=0.0) * precision).sum(1)


def calibration_error(confidence: Array, right: NDArray[np.bool_]) -> Summed:
    """Return the expected calibration error (Naeini et al. 2015; Guo et al. 2017, equation 3).

    ``ECE = sum_b n_b / n * |accuracy_b - confidence_b|`` over bins of equal width.

    Args:
        confidence: ``[N]`` between 0 and 1: the probability of the answer that was given. right: ``[N]``.
    """
    place = find_bins(confidence)
    rows = np.zeros((len(confidence), BINS, 3))
    rows[np.arange(len(confidence)), place] = np.stack([np.ones_like(confidence), confidence, right], 1)

    def value(sums: Array) -> Array:
        counts, confident, correct = np.moveaxis(sums.reshape(len(sums), BINS, 3), 2, 0)
        return np.abs(correct - confident).sum(1) / counts.sum(1)

    return Summed(rows.reshape(len(rows), -1), value)


def find_bins(confidence: Array) -> NDArray[np.int64]:
    """Return the bin of every confidence: the first holds 0, each its upper end."""
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def compute_reliability(confidence: Array, right: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Return the bins of a reliability diagram, as plain values.

    Returns:
        For each bin ``low`` and ``high``: its clips have confidences above ``low`` and up to ``high``; ``count``; and
        the means ``confidence`` and ``accuracy``, 0 where there are no clips.
    """
    place = find_bins(confidence)
    counts = np.bincount(place, minlength=BINS)
    means = [np.bincount(place, each, BINS) / np.maximum(counts, 1) for each in (confidence, right)]
    return [
        {
            "low": index / BINS,
            "high": (index + 1) / BINS,
            "count": int(count),
            "confidence": float(confident),
            "accuracy": float(correct),
        }
        for index, (count, confident, correct) in enumerate(zip(counts, *means, strict=True))
    ]


def compute_probabilities(log_likelihoods: Array, tokens: Sequence[int], likelihood: str) -> Array:
    """Return ``[N, K]`` that add up to 1: ``p_k = exp(s_k) / sum_j exp(s_j)``.

    Args:
        log_likelihoods: ``[N, K]``. tokens: of each label, the end of turn included.
        likelihood: ``sum``: ``s`` is the log-likelihood; ``mean``: it is divided by the tokens of the label.
    """
    scores = log_likelihoods / np.array(tokens, np.float64) if likelihood == "mean" else log_likelihoods
    return np.asarray(softmax(scores, axis=1), np.float64)


def compute_ranking(chances: Array) -> Array:
    """Return what clips are ranked by: the log-odds of their probabilities, to three decimals.

    The same clip in another batch differs by float32's rounding, about 1e-6 here; so near neighbours rank as equals in
    all batches rather than one way or the other.
    """
    return np.round(logit(np.clip(chances, TINY, 1 - TINY)), 3)


def choose_label_metric(metric: str, labels: Mapping[str, Any]) -> str:
    """Return which figure of ``compute_label_metrics`` is that of a metric: accuracy, where it has none of its name."""
    return metric if metric in labels else "accuracy"


def compute_label_metrics(names: Sequence[str], chances: Array, truth: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the figures of a closed set.

    Args:
        names: K labels. chances: ``[N, K]`` probabilities.
        truth: ``[N, K]``: the right labels of each clip, one or more.

    Returns:
        ``names``; ``accuracy``: the likeliest label is a right one; ``map``: macro one-vs-rest average precision of the
        probabilities (see ``ranking``) over the labels that occur; ``ece``; where every clip has one right label also
        ``uar`` and ``macro_f1`` of the likeliest ones; ``intervals`` of all these and ``interval`` of the accuracy;
        ``confusion``: ``[K][K]`` clips, right labels by row, likeliest ones by column; ``bins`` of the
        confidence.
    """
    best = chances.argmax(1)
    clips = np.arange(len(best))
    right, confidence = truth[clips, best], chances[clips, best]
    there = truth.any(0)
    ranks, true = compute_ranking(chances[:, there]), truth[:, there]
    sums = {"accuracy": make_mean(right.astype(np.float64)), "ece": calibration_error(confidence, right)}
    if (truth.sum(1) == 1).all():
        averages = measure_class_averages(truth.argmax(1), best, len(names))
        sums |= {name: averages[name] for name in CLASS_METRICS}
    intervals = {name: compute_interval(len(best), measure.resample) for name, measure in sums.items()}
    intervals["map"] = compute_interval(len(best), lambda counts: resample_precision(ranks, true, counts))
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (np.where(right, best, truth.argmax(1)), best), 1)
    return {
        "names": list(names),
        "accuracy": sums["accuracy"].score(),
        "map": mean_average_precision(ranks, true),
        **{name: sums[name].score() for name in ("ece", *CLASS_METRICS) if name in sums},
        "interval": intervals["accuracy"],
        "intervals": intervals,
        "confusion": confusion.tolist(),
        "bins": compute_reliability(confidence, right),
    }
