"""Mean average precision over classes: how well the clips of a class are ranked before the others."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uniaudio.evaluate.metrics.intervals import Array
from uniaudio.evaluate.metrics.text_metrics import average_present
from uniaudio.extras import require_package


def mean_average_precision(scores: NDArray[np.floating], truth: NDArray[Any], absent: bool = False) -> float:
    """Return the mean over classes of the average precision: ``sum_n (R_n - R_(n-1)) P_n`` over falling thresholds.

    Args:
        scores: ``[N, K]``, any monotone function of the probabilities. truth: ``[N, K]`` of 0 and 1.
        absent: count a class without positives as 0, as X-ARES does by its metric, rather than leave it out.

    Returns:
        0 where no class has a positive.

    Raises:
        UserError: when the package that computes it is not installed.
    """
    require_package("sklearn", "average precision")
    # slow to import, and every training run would wait for it
    from sklearn.metrics import average_precision_score

    present = truth.any(0)
    if not present.any():
        return 0.0
    each = average_precision_score(truth[:, present], scores[:, present], average=None)
    return float(np.sum(each) / (truth.shape[1] if absent else present.sum()))


def resample_precision(scores: Array, truth: NDArray[np.bool_], counts: Array) -> Array:
    """Return the mean average precision over the classes that occur in every resample ``[R]``.

    ``AP = sum_i (recall_i - recall_(i-1)) * precision_i`` over the different scores from the highest on, as
    scikit-learn has it; clips of equal score come together.

    Args:
        scores: ``[N, K]``, higher for what is likelier. truth: ``[N, K]``.
        counts: ``[R, N]``: how often each clip counts in each of R resamples.
    """
    each = [average_precision(scores[:, k], truth[:, k], counts) for k in range(scores.shape[1])]
    return average_present(np.stack(each, 1))


def average_precision(scores: Array, truth: NDArray[np.bool_], counts: Array) -> Array:
    """Return the average precision of one class in every resample ``[R]``; not a number where it does not occur."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(
        np.diff(scores[order], append=np.nan) != 0
    )  # the last clip of every different score
    weights = counts[:, order]
    hits = np.cumsum(weights * truth[order], 1)[:, ends]
    named = np.cumsum(weights, 1)[:, ends]
    with np.errstate(invalid="ignore", divide="ignore"):
        hit_share = hits / hits[:, -1:]
        precision = np.where(named > 0, hits / named, 0.0)
    return (np.diff(hit_share, prepend=0.0) * precision).sum(1)
