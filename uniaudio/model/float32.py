"""Constants that keep their precision when a model is cast, and decisions that are made in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Float32Constants(nn.Module):
    """A module of buffers alone that follows its model to a device but not to another dtype.

    Windows and filter banks rounded to bfloat16 would change every spectrogram.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name, buffer in self._buffers.items():
            if buffer is None:
                continue
            device = fn(buffer[:0]).device
            # ``to_empty`` moves buffers without values, for its caller to fill
            self._buffers[name] = (
                torch.empty_like(buffer, device=device) if buffer.is_meta else buffer.to(device)
            )
        return self


def raise_to_float32(values: Tensor) -> Tensor:
    """Return values of less precision as float32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Float32Linear(nn.Linear):
    """A linear map computed in float32 at least, whatever the dtype of its weights, under autocast too: for routers.

    A choice among experts in bfloat16 falls differently where two of them are close.
    """

    def forward(self, input: Tensor) -> Tensor:
        weight = raise_to_float32(self.weight)
        with torch.autocast(input.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.to(weight.dtype)
            return F.linear(input.to(weight.dtype), weight, bias)
