"""Encoded audio and how its bytes are read: from memory, a file or a part, another machine; samples as a WAV."""

from __future__ import annotations

import io
import os
import struct
import unicodedata
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.data.containers.riff import PCM
from uniaudio.errors import RowError

SMALL_FILE = 1 << 23  # bytes; a file up to this size is read at once
FLOAT = 3  # WAV's number for samples that are floats
MOST_CHANNELS = 64


@dataclass(frozen=True)
class FilePart:
    """``size`` bytes of a file from ``offset`` on, such as a member of an archive; read when it is decoded."""

    path: Path
    offset: int
    size: int

    def read(self, first: int = 0, count: int | None = None) -> bytes:
        """Return ``count`` of the bytes from ``first`` on, fewer at the end of the part; all that follow for None.

        Raises:
            ValueError: when the file ends before the part does. OSError: when it cannot be read.
        """
        file = open_cached(self.path).fileno()
        # looked at before anything is read: a size that a manifest states wrongly would be allocated
        if min(self.offset, self.size) < 0 or self.offset + self.size > os.fstat(file).st_size:
            raise ValueError(f"{self.path} does not have {self.size} bytes at {self.offset}")
        left = max(0, self.size - first)
        return os.pread(file, left if count is None else min(count, left), self.offset + first)


class RemoteClip(ABC):
    """Encoded audio that is on another machine, read like a file; all methods raise ``RowError``."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of the file."""

    @abstractmethod
    def read(self, first: int, count: int) -> bytes:
        """Return ``count`` of the bytes from ``first`` on, fewer at the end."""

    @abstractmethod
    def fetch(self) -> Path | bytes:
        """Return the whole file."""


@lru_cache(maxsize=128)
def open_cached(path: Path) -> FileIO:
    """Return an open file: archives are read again and again, and ``pread`` needs no place of its own."""
    return FileIO(path)


LocalAudio = bytes | memoryview | Path | FilePart
EncodedAudio = LocalAudio | RemoteClip


def require_file(source: LocalAudio) -> LocalAudio:
    """Return audio whose file is there, for reading a pipe would wait for ever.

    A manifest and a file system may write one name in two ways, with accents composed or not, with slashes or
    backslashes, with its suffix in upper or lower case: it is the same file.

    Raises:
        RowError: "missing file".
    """
    path = source.path if isinstance(source, FilePart) else source
    if not isinstance(path, Path) or path.is_file():
        return source
    written = dict.fromkeys([str(path), str(path).replace("\\", "/")])
    for named in (Path(unicodedata.normalize(form, text)) for text in written for form in ("NFC", "NFD")):
        for suffix in dict.fromkeys([named.suffix, named.suffix.lower(), named.suffix.upper()]):
            spelled = named.with_suffix(suffix) if suffix else named
            if spelled.is_file():
                return replace(source, path=spelled) if isinstance(source, FilePart) else spelled
    raise RowError("missing file", f"{path} is a folder" if path.is_dir() else str(path))


class JumpStream(io.RawIOBase):
    """Bytes of a known number that are read from any place on; subclasses have ``size`` and ``readinto``.

    Attributes:
        place: from which the next bytes are read.
    """

    size: int
    place = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        begin = self.size if whence == io.SEEK_END else self.place if whence == io.SEEK_CUR else 0
        self.place = max(0, begin + offset)
        return self.place

    def tell(self) -> int:
        return self.place


class PartStream(JumpStream):
    """A part of a file, or a file elsewhere, as a file of its own: a header or a span is read without the rest."""

    def __init__(self, part: FilePart | RemoteClip) -> None:
        self.part, self.size = part, part.size
        self.problem: Exception | None = None  # what is raised inside of libsndfile would be printed and lost

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self.part.read(self.place, len(buffer))
        except (OSError, ValueError, RowError) as problem:
            self.problem = problem
            return 0
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


@dataclass(frozen=True)
class EncodedBytes:
    """Encoded audio in memory, read as a ``RemoteClip`` is."""

    data: bytes | memoryview

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, first: int, count: int) -> bytes:
        return bytes(self.data[first : first + count])


class OpenFile:
    """A file on disk, read as a ``RemoteClip`` is; libsndfile gets its own descriptor of it.

    Args:
        is_whole: whether to read a small file at once, which is quicker where it is decoded as a whole.

    Attributes:
        content: of a file that was read at once, else nothing.
    """

    def __init__(self, path: Path, is_whole: bool = False) -> None:
        self.file = FileIO(path)
        self.size = os.fstat(self.file.fileno()).st_size
        self.content = self.file.read(self.size) if is_whole and self.size <= SMALL_FILE else b""

    def __del__(self) -> None:
        if "file" in self.__dict__:  # else it could not be opened
            self.file.close()

    def read(self, first: int, count: int) -> bytes:
        if self.content:
            return self.content[first : first + count]
        return os.pread(self.file.fileno(), count, first)


Reader = EncodedBytes | OpenFile | FilePart | RemoteClip


class ByteStream(io.BytesIO):
    """Bytes as a file: a damaged header may send libsndfile before their beginning, which is no error to print."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.getbuffer().nbytes}[whence]
        return super().seek(max(0, base + offset))


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
        raise RowError("broken audio", f"{name}: an array with rows of different lengths") from problem
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
