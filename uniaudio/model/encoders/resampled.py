"""Waveforms at the rate that an encoder hears. Only encoders of other rates import this, and with it soxr."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from uniaudio.types import SAMPLE_RATE


def resample_to(wave: NDArray[np.float32], rate: int) -> NDArray[np.float32]:
    """Resample 16 kHz samples to another rate; the length is ``round(n * rate / 16000)``."""
    if rate == SAMPLE_RATE:
        return wave
    return np.asarray(soxr.resample(wave, SAMPLE_RATE, rate), dtype=np.float32)
