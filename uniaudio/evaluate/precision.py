"""Mean average precision over classes: how well the clips of a class are ranked before the others."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score


def mean_average_precision(
    scores: NDArray[np.floating], truth: NDArray[np.floating], absent: bool = False
) -> float:
    """Return the mean over classes of the average precision: ``sum_n (R_n - R_(n-1)) P_n`` over falling thresholds.

    Args:
        scores: ``[N, K]``, any monotone function of the probabilities. truth: ``[N, K]`` of 0 and 1.
        absent: count a class without positives as 0, as X-ARES does by its metric, rather than leave it out.

    Returns:
        0 where no class has a positive.
    """
    present = truth.any(0)
    if not present.any():
        return 0.0
    each = average_precision_score(truth[:, present], scores[:, present], average=None)
    return float(np.sum(each) / (truth.shape[1] if absent else present.sum()))
