"""Clips of noise on which what was written is compared with what was to be written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from uniaudio.model.encoders.chunks import as_float
from uniaudio.ragged import Ragged

SIZE = 3000  # standard deviation, of 32768


def noise(lengths: Sequence[int]) -> Ragged:
    """Return int16 noise, a function of the lengths."""
    generator = torch.Generator().manual_seed(sum(lengths))
    return Ragged.from_rows([(torch.randn(n, generator=generator) * SIZE).to(torch.int16) for n in lengths])


def padded_noise(lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the same noise as floats ``[B, S]`` with silence behind each clip, and ``lengths [B]``."""
    audio = noise(lengths)
    return as_float(audio.pad()[0]), audio.lengths
