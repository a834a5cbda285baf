"""Constants that keep their precision when a model is cast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Float32Constants(nn.Module):
    """A module of buffers alone that follows its model to a device but not to another dtype.

    Windows and filter banks rounded to bfloat16 would change every spectrogram.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name, buffer in self._buffers.items():
            if buffer is not None:
                self._buffers[name] = buffer.to(fn(buffer[:0]).device)
        return self
