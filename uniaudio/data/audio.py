"""Encoded audio to int16 mono samples at 16 kHz, and clip lengths from headers alone."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from uniaudio.errors import RowError
from uniaudio.types import SAMPLE_RATE

QUANTA = 32768.0  # of int16 in one


@dataclass(frozen=True)
class FilePart:
    """``size`` bytes of a file from ``offset`` on, such as a member of an archive; read when it is decoded."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        """Return the bytes, fewer where the file is cut."""
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


Encoded = bytes | Path | FilePart


class PartStream(io.RawIOBase):
    """A part of a file as a file of its own: a header is read without the samples behind it."""

    def __init__(self, stream: BinaryIO, part: FilePart) -> None:
        self.stream, self.part, self.place = stream, part, 0

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
        count = max(0, min(len(buffer), self.part.size - self.place))
        self.stream.seek(self.part.offset + self.place)
        data = self.stream.read(count)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def opened(source: Encoded, name: str) -> soundfile.SoundFile:
    """Open a file, a part of one or bytes with libsndfile (wav, flac, mp3, ogg, opus ...).

    Raises:
        RowError: "missing file", "broken audio", "empty audio".
    """
    path = source.path if isinstance(source, FilePart) else source
    if isinstance(path, Path) and not path.is_file():
        raise RowError("missing file", str(path))
    if isinstance(source, Path):
        size = source.stat().st_size
    else:
        size = source.size if isinstance(source, FilePart) else len(source)
    if size == 0:
        raise RowError("empty audio", name)
    try:
        if isinstance(source, FilePart):
            return soundfile.SoundFile(PartStream(source.path.open("rb"), source))
        return soundfile.SoundFile(io.BytesIO(source) if isinstance(source, bytes) else str(source))
    except (soundfile.SoundFileError, OSError) as problem:
        raise RowError("broken audio", f"{name} ({problem})") from problem


def probe_seconds(source: Encoded, name: str = "") -> float:
    """Return the length in seconds as the header states it.

    Raises:
        RowError: "missing file", "broken audio", "empty audio".
    """
    with opened(source, name or str(source)[:200]) as file:
        return file.frames / file.samplerate


def decode(
    source: Encoded, max_seconds: float, name: str, span: tuple[float, float] | None = None
) -> NDArray[np.int16]:
    """Decode to ``[S]`` int16: the mean of the channels, resampled to 16 kHz (soxr, high quality).

    Args:
        name: how messages call the clip. span: (start, end) in seconds, to decode a part of a recording.

    Raises:
        RowError: "missing file", "broken audio", "empty audio", "non-finite samples", "clip too long", "span outside
            of the recording".
    """
    if isinstance(source, FilePart) and source.path.is_file():
        source = source.read()  # one read is quicker than libsndfile's many small ones
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
        try:
            file.seek(first)
            samples = file.read(frames, dtype="float32", always_2d=True)
        except (soundfile.SoundFileError, OSError) as problem:
            raise RowError("broken audio", f"{name} ({problem})") from problem
    if not len(samples):
        raise RowError("empty audio", name)
    mono = samples.mean(axis=1) if samples.shape[1] > 1 else samples[:, 0]
    if not np.isfinite(mono).all():
        raise RowError("non-finite samples", name)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if not len(mono):
        raise RowError("empty audio", name)
    return np.clip(np.rint(mono * QUANTA), -32768, 32767).astype(np.int16)
