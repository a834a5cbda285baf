"""A moving average of the trained tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class MovingAverage:
    """``average <- decay * average + (1 - decay) * theta`` after every update (Polyak and Juditsky 1992, exponential).

    Averages are laid out as the parameters are: whole, or this rank's part.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.tensors: dict[str, Tensor] = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the parameters as they are now."""
        for name, parameter in model.named_parameters():
            if name in self.tensors:
                self.tensors[name].lerp_(parameter.detach(), 1 - self.decay)

    def load(self, given: Mapping[str, Tensor]) -> None:
        """Continue from stored averages."""
        for name, average in self.tensors.items():
            average.copy_(given[name])
