"""Streams of pretrained encoders brought to one mean and one size."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

SMALLEST_SPREAD = 0.05  # of a feature, as a share of the median: what hardly varies is not blown up


class FeatureScale(nn.Module):
    """``w * h + b`` for every feature of a stream; the stream itself until it is fitted."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, frames: Float[Tensor, "A E"]) -> Float[Tensor, "A E"]:
        return torch.addcmul(self.bias, frames, self.weight)


def fit_scale(
    frames: Float[Tensor, "A E"], shares: Float[Tensor, " A"]
) -> tuple[Float[Tensor, " E"], Float[Tensor, " E"]]:
    """Return the weight and the bias that give features mean 0 and variance 1 over some frames.

    Args:
        shares: weight of every frame; they add up to 1.
    """
    mean = shares @ frames
    spread = (shares @ (frames - mean).square()).sqrt()
    weight = 1 / spread.clamp(min=SMALLEST_SPREAD * float(spread.median()))
    return weight, -mean * weight
