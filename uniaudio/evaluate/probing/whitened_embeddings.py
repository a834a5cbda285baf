"""Embeddings whitened before they are probed: how much of a difference between models is the size of their features.

kNN compares embeddings by cosine, in which large features outweigh all others, so that a training that only changes the
size of features changes its score. Whitened embeddings have no large features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uniaudio.evaluate.probing.task_embeddings import Embedded
from uniaudio.evaluate.probing.task_rows import Indices, Trial
from uniaudio.model.attenuated_whitening import attenuate_components
from uniaudio.model.fusion.encoder import ROUNDING, SMALLEST_SPREAD
from uniaudio.ragged import Ragged

MOST_FITTED = 32768  # vectors, evenly spaced: neither time nor memory grows with the frames of a large set
BLOCK = 8192  # vectors that are whitened at a time


@dataclass(frozen=True)
class Whitening:
    """Brings features to mean 0 and variance 1, and then their principal components closer to one size.

    Args:
        mean, scale: of features, ``[E]`` float64; the scale of those that do not vary is 0.
        components: ``[E, E]`` float32, see ``attenuate_components``.
    """

    mean: Tensor
    scale: Tensor
    components: Tensor

    def apply(self, vectors: Tensor) -> Tensor:
        """Return whitened vectors ``[N, E]``, in float32."""
        return torch.cat(list(self.apply_in_blocks(vectors)))

    def apply_in_blocks(self, vectors: Tensor) -> Iterator[Tensor]:
        """Yield whitened vectors ``[B, E]`` in their order, in float32; all together ``[N, E]``."""
        for block in vectors.split(BLOCK):
            yield ((block.double() - self.mean) * self.scale).float() @ self.components


def fit_whitening(vectors: Tensor) -> Whitening:
    """Fit the whitening of a set of vectors ``[N, E]``, such as the embeddings of the clips that train a probe.

    Few vectors say nothing of most directions, which are not blown up; features that do not vary become 0.
    """
    exact = vectors.double()
    mean = exact.mean(0)
    spread = exact.std(0, correction=0)
    varies = spread > ROUNDING * mean.abs()
    usual = spread[varies].median() if varies.any() else spread.new_ones(())
    scale = torch.where(varies, 1 / spread.clamp(min=SMALLEST_SPREAD * usual), 0)
    return Whitening(mean, scale, attenuate_components((exact - mean) * scale).float())


def fit_trial_whitenings(embedded: Embedded, trials: Sequence[Trial]) -> list[Whitening]:
    """Return the whitening of every trial, fitted to the clips that train its probe, without their labels.

    Every vector counts the same: one for each clip, or in frame tasks every frame.
    """
    return [fit_whitening(sample_vectors(embedded, trial.train)) for trial in trials]


def sample_vectors(embedded: Embedded, rows: Indices) -> Tensor:
    """Return the vectors or frames of some rows ``[N, E]``, of many of them ``MOST_FITTED``."""
    pieces = embedded.pieces_of(rows)
    starts = Ragged.find_row_starts(embedded.lengths)[pieces]
    vectors = Ragged.index_slices(starts, embedded.lengths[pieces])
    count = min(len(vectors), MOST_FITTED)
    evenly = torch.linspace(0, len(vectors) - 1, count, dtype=torch.float64).round().long()
    return embedded.values[vectors[evenly]]
