"""Encoded audio to int16 mono samples at 16 kHz, and clip lengths from headers alone."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from uniaudio.errors import RowError
from uniaudio.types import SAMPLE_RATE

Encoded = bytes | Path


def opened(source: Encoded, name: str) -> soundfile.SoundFile:
    """Open a file or bytes with libsndfile (wav, flac, mp3, ogg, opus ...)."""
    if isinstance(source, Path) and not source.is_file():
        raise RowError("missing file", str(source))
    if isinstance(source, bytes) and not source:
        raise RowError("empty audio", name)
    try:
        return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (soundfile.SoundFileError, OSError) as problem:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        reason = "empty audio" if size == 0 else "broken audio"
        raise RowError(reason, f"{name} ({problem})") from problem


def probe_seconds(source: Encoded, name: str = "") -> float:
    """Return the length in seconds as the header states it.

    Raises:
        RowError: "missing file", "broken audio", "empty audio".
    """
    with opened(source, name or str(source)[:200]) as file:
        return file.frames / file.samplerate


def decode(source: Encoded, max_seconds: float, name: str) -> NDArray[np.int16]:
    """Decode to ``[S]`` int16: the mean of the channels, resampled to 16 kHz (soxr, high quality).

    Args:
        name: how messages call the clip.

    Raises:
        RowError: "missing file", "broken audio", "empty audio", "non-finite samples", "clip too long".
    """
    with opened(source, name) as file:
        if file.frames > max_seconds * file.samplerate * 1.001:
            raise RowError(
                "clip too long", f"{name}: {file.frames / file.samplerate:.1f} s, allowed {max_seconds:g} s"
            )
        try:
            samples = file.read(dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as problem:
            raise RowError("broken audio", f"{name} ({problem})") from problem
        rate = file.samplerate
    if not len(samples):
        raise RowError("empty audio", name)
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise RowError("non-finite samples", name)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if not len(mono):
        raise RowError("empty audio", name)
    return np.clip(np.rint(mono * 32768.0), -32768, 32767).astype(np.int16)
