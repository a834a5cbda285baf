"""Whether a model is as often right as it says: expected calibration error and its bins."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uniaudio.evaluate.metrics.intervals import Array, Summed

BINS = 15  # of equal width between 0 and 1, as Guo et al. 2017


@dataclass(frozen=True)
class Bin:
    """Clips whose confidence lies above ``low`` and up to ``high``; the means are 0 where there are none."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


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
    """Return the bins of a reliability diagram, as plain values."""
    place = find_bins(confidence)
    rows = []
    for index in range(BINS):
        in_bin = place == index
        count = int(in_bin.sum())
        means = (float(x[in_bin].mean()) if count else 0.0 for x in (confidence, right.astype(np.float64)))
        rows.append(asdict(Bin(index / BINS, (index + 1) / BINS, count, *means)))
    return rows
