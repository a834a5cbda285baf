"""Encoded audio to int16 mono samples at 16 kHz, and clip lengths from headers alone."""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from uniaudio.errors import RowError
from uniaudio.types import SAMPLE_RATE

QUANTA = 32768.0  # of int16 in one
PCM = 1  # WAV's number for plain samples
HIGHEST_RATE = 1_000_000  # Hz; a header that states more, or more frames than the next line, is damaged
MOST_FRAMES = 1 << 40


@dataclass(frozen=True)
class FilePart:
    """``size`` bytes of a file from ``offset`` on, such as a member of an archive; read when it is decoded."""

    path: Path
    offset: int
    size: int

    def read(self, first: int = 0, count: int | None = None) -> bytes:
        """Return ``count`` of the bytes from ``first`` on, or all of them.

        Raises:
            ValueError: when the file ends before the part does. OSError: when it cannot be read.
        """
        file = kept_open(self.path).fileno()
        # looked at before anything is read: a size that a manifest states wrongly would be allocated
        if min(self.offset, self.size) < 0 or self.offset + self.size > os.fstat(file).st_size:
            raise ValueError(f"{self.path} has no {self.size} bytes at {self.offset}")
        return os.pread(file, self.size - first if count is None else count, self.offset + first)


@lru_cache(maxsize=128)
def kept_open(path: Path) -> FileIO:
    """Return an open file: archives are read again and again, and ``pread`` needs no place of its own."""
    return FileIO(path)


Encoded = bytes | memoryview | Path | FilePart


class PartStream(io.RawIOBase):
    """A part of a file as a file of its own: a header or a span is read without the rest."""

    def __init__(self, part: FilePart) -> None:
        self.part, self.place = part, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.part.size}[whence]
        self.place = max(0, base + offset)
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self.part.read(self.place, max(0, min(len(buffer), self.part.size - self.place)))
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def plain_wave(data: bytes | memoryview) -> tuple[NDArray[np.int16], int] | None:
    """Return samples ``[S]`` and rate of a whole mono WAV file of 16 bits, or None for anything else.

    Short clips of this kind are the bulk of keyword sets, and opening them with a library takes longer than their
    samples.
    """
    if len(data) < 44 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        return None
    place, rate = 12, 0
    while place + 8 <= len(data):
        name, size = data[place : place + 4], int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8
        if place + size > len(data):
            return None
        if name == b"fmt ":
            kind, channels, rate = struct.unpack_from("<HHI", data, place)
            if (kind, channels, data[place + 14]) != (PCM, 1, 16):
                return None
        elif name == b"data":
            return (np.frombuffer(data, "<i2", size // 2, place), rate) if rate and size else None
        place += size + size % 2
    return None


def opened(source: Encoded, name: str) -> soundfile.SoundFile:
    """Open a file, a part of one or bytes with libsndfile (wav, flac, mp3, ogg, opus ...).

    Raises:
        RowError: "missing file", "broken audio", "empty audio".
    """
    path = source.path if isinstance(source, FilePart) else source
    if isinstance(path, Path) and not path.is_file():
        raise RowError("missing file", str(path))
    try:
        if isinstance(source, Path):
            size = source.stat().st_size
        else:
            size = source.size if isinstance(source, FilePart) else len(source)
        if size == 0:
            raise RowError("empty audio", name)
        if isinstance(source, FilePart):
            source.read(0, 0)  # an error inside libsndfile's callbacks would be printed, not raised
            file = soundfile.SoundFile(PartStream(source))
        else:
            file = soundfile.SoundFile(str(source) if isinstance(source, Path) else io.BytesIO(source))
    except (soundfile.SoundFileError, OSError, ValueError) as problem:
        raise broken(name, problem) from problem
    if file.samplerate > HIGHEST_RATE or file.frames > MOST_FRAMES:
        raise RowError(
            "broken audio", f"{name} (the header states {file.frames} frames at {file.samplerate} Hz)"
        )
    return file


def broken(name: str, problem: Exception) -> RowError:
    """Return what to say of audio that cannot be read; libsndfile's own words, without addresses of objects."""
    return RowError("broken audio", f"{name} ({getattr(problem, 'error_string', problem)})")


def probe_seconds(source: Encoded, name: str = "") -> float:
    """Return the length in seconds as the header states it.

    Raises:
        RowError: "missing file", "broken audio", "empty audio".
    """
    with opened(source, name or str(source)[:200]) as file:
        return file.frames / file.samplerate


def decode(
    source: Encoded,
    max_seconds: float,
    name: str,
    span: tuple[float, float] | None = None,
    notices: list[str] | None = None,
) -> NDArray[np.int16]:
    """Decode to ``[S]`` int16: the mean of the channels, resampled to 16 kHz (soxr, high quality).

    Args:
        name: how messages call the clip. span: (start, end) in seconds, to decode a part of a recording.
        notices: gets what is odd about the clip, see ``ClipNotice``.

    Raises:
        RowError: "missing file", "broken audio", "empty audio", "non-finite samples", "clip too long", "span outside
            of the recording".
    """
    if isinstance(source, FilePart) and span is None and source.path.is_file():
        try:
            source = source.read()  # one read is quicker than libsndfile's many small ones
        except (OSError, ValueError) as problem:
            raise broken(name, problem) from problem
    if isinstance(source, bytes | memoryview) and span is None:
        wave = plain_wave(source)
        if wave is not None and wave[1] == SAMPLE_RATE and len(wave[0]) <= max_seconds * SAMPLE_RATE * 1.001:
            return wave[0]
    with opened(source, name) as file:
        rate, first, frames = file.samplerate, 0, file.frames
        if span is not None:
            first, end = (round(seconds * rate) for seconds in span)
            frames = end - first
            if not 0 <= first < end <= file.frames + rate // 100:  # ends are written with two digits
                raise RowError(
                    "span outside of the recording",
                    f"{name}: {span[0]:g} to {span[1]:g} s of {file.frames / rate:.2f} s",
                )
        if frames > max_seconds * rate * 1.001:
            raise RowError("clip too long", f"{name}: {frames / rate:.1f} s, allowed {max_seconds:g} s")
        # already what is asked for: 16 bits of one channel at 16 kHz need no way through floats
        ready = rate == SAMPLE_RATE and file.channels == 1 and file.subtype == "PCM_16"
        try:
            file.seek(first)
            samples = file.read(frames, dtype="int16" if ready else "float32", always_2d=True)
        except (soundfile.SoundFileError, OSError, MemoryError) as problem:
            raise broken(name, problem) from problem
    if not len(samples):
        raise RowError("empty audio", name)
    if ready:
        return samples[:, 0]
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise RowError("non-finite samples", name)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if not len(mono):
        raise RowError("empty audio", name)
    mono = np.multiply(mono, np.float32(QUANTA))
    return np.clip(np.rint(mono, out=mono), -32768, 32767, out=mono).astype(np.int16)
