"""95 % intervals by resampling clips (percentile bootstrap, Efron and Tibshirani 1993, chapter 13).

Most scores are functions of sums over clips: errors and words, right answers and clips, n-grams found and written. The
sums of a resample are the counts of how often each clip was drawn times the clips' own numbers, so all resamples are
one matrix product and nothing is scored anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Array = NDArray[np.float64]
RESAMPLES = 1000
SEED = 0
TAILS = (2.5, 97.5)  # per cent below the ends of the interval
NUMBERS = 2**22  # counts that exist at the same time: 32 MiB


@dataclass(frozen=True)
class Summed:
    """A score that is a function of sums over clips.

    Args:
        rows: ``[N, S]``: S numbers of each of N clips; sparse where nearly all are 0.
        value: sums ``[R, S]`` to scores ``[R]``; not finite where a resample has none.
    """

    rows: Array | csr_array
    value: Callable[[Array], Array]

    @property
    def clips(self) -> int:
        """N."""
        return int(self.rows.shape[0])

    def score(self) -> float:
        """Return the score of all clips, each counted once."""
        return float(self.value(np.asarray(self.rows.sum(0))[None])[0])

    def resample(self, counts: Array) -> Array:
        """Return the scores ``[R]`` where clip ``n`` counts ``counts[r, n]`` times."""
        return self.value(counts @ self.rows)


def divide_sums(sums: Array) -> Array:
    """Divide the first column by the second: a mean, or an error rate."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[:, 0] / sums[:, 1]


def make_mean(values: Array) -> Summed:
    """Return the mean over clips as a score."""
    return Summed(np.stack([values, np.ones_like(values)], 1), divide_sums)


def average_present(values: Array) -> Array:
    """Return the mean of every row over the entries that are numbers; not a number where there are none."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0.0).sum(1) / there.sum(1)


def draw_resamples(clips: int, seed: int = SEED) -> Iterator[Array]:
    """Yield how often each clip is drawn in each resample, ``[r, clips]`` at a time, ``RESAMPLES`` rows in all.

    The rows are a function of the seed and of the number of clips alone.
    """
    random = np.random.default_rng(seed)
    together = max(1, NUMBERS // clips)
    for start in range(0, RESAMPLES, together):
        rows = min(together, RESAMPLES - start)
        drawn = random.integers(0, clips, (rows, clips)) + np.arange(rows)[:, None] * clips
        yield np.bincount(drawn.ravel(), minlength=rows * clips).reshape(rows, clips).astype(np.float64)


def compute_interval(clips: int, resample: Callable[[Array], Array]) -> list[float]:
    """Return the 2.5 and the 97.5 per cent quantile of a score over resamples of the clips.

    Args:
        resample: counts ``[R, N]`` to scores ``[R]``, as ``Summed.resample``; scores that are not finite are left
            out.
    """
    scores = np.concatenate([resample(counts) for counts in draw_resamples(clips)])
    scores = scores[np.isfinite(scores)]
    if not len(scores):
        return [float("nan"), float("nan")]
    return [float(end) for end in np.percentile(scores, TAILS)]
