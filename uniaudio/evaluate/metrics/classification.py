"""From the log-likelihoods of labels to probabilities, and to the figures of a closed set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit, softmax

from uniaudio.evaluate.metrics.average_precision import mean_average_precision, resample_precision
from uniaudio.evaluate.metrics.calibration import calibration_error, compute_reliability
from uniaudio.evaluate.metrics.intervals import Array, compute_interval, make_mean

TINY = 1e-15  # probabilities nearer to 0 or 1 have log-odds of 34.5 either way


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


def compute_label_metrics(names: Sequence[str], chances: Array, truth: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the figures of a closed set.

    Args:
        names: K labels. chances: ``[N, K]`` probabilities.
        truth: ``[N, K]``: the right labels of each clip, one or more.

    Returns:
        ``names``; ``accuracy``: the likeliest label is a right one; ``map``: macro one-vs-rest average precision of the
        probabilities (see ``ranking``) over the labels that occur; ``ece``; ``intervals`` of the three and ``interval``
        of the accuracy; ``confusion``: ``[K][K]`` clips, right labels by row, likeliest ones by column; ``bins`` of the
        confidence.
    """
    best = chances.argmax(1)
    clips = np.arange(len(best))
    right, confidence = truth[clips, best], chances[clips, best]
    there = truth.any(0)
    ranks, true = compute_ranking(chances[:, there]), truth[:, there]
    sums = {"accuracy": make_mean(right.astype(np.float64)), "ece": calibration_error(confidence, right)}
    intervals = {name: compute_interval(len(best), measure.resample) for name, measure in sums.items()}
    intervals["map"] = compute_interval(len(best), lambda counts: resample_precision(ranks, true, counts))
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (np.where(right, best, truth.argmax(1)), best), 1)
    return {
        "names": list(names),
        "accuracy": sums["accuracy"].score(),
        "map": mean_average_precision(ranks, true),
        "ece": sums["ece"].score(),
        "interval": intervals["accuracy"],
        "intervals": intervals,
        "confusion": confusion.tolist(),
        "bins": compute_reliability(confidence, right),
    }
