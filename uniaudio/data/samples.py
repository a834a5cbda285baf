"""Clips that come as decoded samples: written as WAV in memory, so that they are read like all others."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from uniaudio.errors import RowError

PCM, FLOAT = 1, 3  # WAV's numbers for kinds of samples
MOST_CHANNELS = 64


def encode_samples(array: Any, rate: Any, name: str) -> bytes:
    """Return decoded samples as a WAV file: whole numbers as PCM of 16 or 32 bits, floats as floats of 32 bits.

    Args:
        array: ``[S]``, ``[S, C]`` or ``[C, S]``, numbers. rate: in Hz. name: how messages call the clip.

    Raises:
        RowError: "broken audio" where they are no samples or have no rate.
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1 << 31:
        raise RowError("broken audio", f"{name}: an array of samples needs a `sampling_rate`, got {rate!r}")
    try:
        samples = np.asarray(array)
    except ValueError as problem:
        raise RowError("broken audio", f"{name}: an array of unequal parts") from problem
    if samples.dtype == object or samples.dtype.kind not in "iuf" or samples.ndim not in (1, 2):
        raise RowError("broken audio", f"{name}: an array of {samples.dtype} and {samples.ndim} dimensions")
    if samples.ndim == 2 and samples.shape[0] < samples.shape[1]:
        samples = samples.T  # as torchaudio and librosa lay out channels
    channels = samples.shape[1] if samples.ndim == 2 else 1
    if channels > MOST_CHANNELS:
        raise RowError("broken audio", f"{name}: an array of {channels} channels")
    kind = PCM
    if samples.dtype.kind == "f":
        kind, samples = FLOAT, samples.astype("<f4")
    elif samples.dtype == np.uint8:
        pass  # WAV's own 8 bits are unsigned, too
    elif samples.dtype == np.int8:
        samples = samples.astype("<i2") * 256
    else:  # what JSON and Arrow hold as 64 bits is nearly always 16
        is_short = not samples.size or -(1 << 15) <= samples.min() <= samples.max() < 1 << 15
        samples = (
            samples.astype("<i2") if is_short else np.clip(samples, -(1 << 31), (1 << 31) - 1).astype("<i4")
        )
    size, width = samples.nbytes, samples.dtype.itemsize
    facts = (kind, channels, int(rate), int(rate) * channels * width, channels * width, 8 * width)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + size, b"WAVE", b"fmt ", 16, *facts, b"data", size)
    return head + samples.tobytes()
