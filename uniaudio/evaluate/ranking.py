"""Average precision of scores, with clips that count several times: what resampling a ranking needs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from uniaudio.evaluate.intervals import Array
from uniaudio.evaluate.text_metrics import mean_over_present


def mean_average_precision(scores: Array, truth: NDArray[np.bool_], counts: Array | None = None) -> Array:
    """Return the macro mean of one-vs-rest average precision over the classes that occur: ``[R]``.

    ``AP = sum_i (recall_i - recall_(i-1)) * precision_i`` over the different scores from the highest on, as
    scikit-learn has it; clips of equal score come together.

    Args:
        scores: ``[N, K]``, higher for what is likelier. truth: ``[N, K]``.
        counts: ``[R, N]``: how often each clip counts in each of R resamples. None: each once, and R is 1.
    """
    counts = np.ones((1, len(scores))) if counts is None else counts
    each = [average_precision(scores[:, k], truth[:, k], counts) for k in range(scores.shape[1])]
    return mean_over_present(np.stack(each, 1))


def average_precision(scores: Array, truth: NDArray[np.bool_], counts: Array) -> Array:
    """Return the average precision of one class in every resample ``[R]``; not a number where it does not occur."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(
        np.diff(scores[order], append=np.nan) != 0
    )  # the last clip of every different score
    counted = counts[:, order]
    found = np.cumsum(counted * truth[order], 1)[:, ends]
    named = np.cumsum(counted, 1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        recall = found / found[:, -1:]
        precision = np.where(named > 0, found / named, 0.0)
    return (np.diff(recall, prepend=0.0) * precision).sum(1)
