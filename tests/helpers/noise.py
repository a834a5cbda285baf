"""Clips of noise, each a function of its length alone."""

import numpy as np
import torch
from numpy.typing import NDArray

from uniaudio.ragged import Ragged


def clip(samples: int) -> NDArray[np.int16]:
    return (np.random.default_rng(samples).standard_normal(samples) * 3000).astype(np.int16)


def wave(samples: int) -> NDArray[np.float32]:
    """The same as floats."""
    return clip(samples).astype(np.float32) / 32768


def pack(*lengths: int) -> Ragged:
    return Ragged.from_rows([torch.from_numpy(clip(n)) for n in lengths])
