"""The clips and the models that both sides of a benchmark share: whisper-tiny size, random weights from one seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from uniaudio.types import SAMPLE_RATE

CASES = ("1", "2", "5", "10", "15", "30", "mix")  # seconds of every clip, or clips of mixed length
QUICK_CASES = ("1", "30", "mix")
MICRO_BATCH = 8  # clips
GRID = 0.08  # seconds: one audio token at 12.5 Hz, so that both sides see the same number of tokens


def clip_seconds(case: str, count: int) -> list[float]:
    """Return the lengths of ``count`` clips, sorted; the same ones in every process."""
    if case != "mix":
        return [float(case)] * count
    generator = random.Random(0)
    return sorted(round(mixed_length(generator) / GRID) * GRID for _ in range(count))


def mixed_length(generator: random.Random) -> float:
    """Draw from a mixture of keyword, short, utterance, 10 s and 30 s clips, in seconds; the mean is about 12 s."""
    part = generator.random()
    if part < 0.15:
        return generator.uniform(0.6, 1.2)
    if part < 0.30:
        return generator.uniform(2, 5)
    if part < 0.65:
        return min(30.0, max(1.0, generator.gauss(12, 4)))
    return 10.0 if part < 0.90 else 30.0


def noise(seconds: Sequence[float]) -> list[NDArray[np.int16]]:
    """Return one int16 clip of noise at 16 kHz for every length."""
    return [
        (np.random.default_rng(i).standard_normal(round(length * SAMPLE_RATE)) * 3000).astype(np.int16)
        for i, length in enumerate(seconds)
    ]


def as_float(clip: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return samples between -1 and 1, as the stock extractor takes them."""
    return clip.astype(np.float32) / 32768.0


def stock_micro_batches(seconds: Sequence[float], clips: int = MICRO_BATCH) -> list[list[int]]:
    """Cut sorted clips into micro-batches of a fixed number of clips: the stock way, little padding in the text."""
    return [list(range(start, min(start + clips, len(seconds)))) for start in range(0, len(seconds), clips)]


def our_micro_batches(seconds: Sequence[float]) -> list[list[int]]:
    """Cut sorted clips by audio seconds, so many that a micro-batch holds as many clips as the stock one on average."""
    budget = max(MICRO_BATCH * sum(seconds) / len(seconds), max(seconds)) + 1e-6
    batches: list[list[int]] = [[]]
    used = 0.0
    for index, length in enumerate(seconds):
        if used + length > budget:
            batches.append([])
            used = 0.0
        batches[-1].append(index)
        used += length
    return batches
