"""Encoded audio to int16 mono samples at 16 kHz, and clip lengths from headers alone."""

from __future__ import annotations

import io
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from uniaudio.data.clip_notices import ANTI_PHASE, CLIPPED
from uniaudio.data.containers import flac, mpeg, ogg, riff
from uniaudio.data.containers.libsndfile_log import HEADERLESS, check_notes
from uniaudio.errors import RowError, convert_to_row_error
from uniaudio.types import SAMPLE_RATE

QUANTA = 32768.0  # of int16 in one
PCM = 1  # WAV's number for plain samples
FORMAT_SIZES = (16, 18, 40)  # bytes that describe the samples in a WAV file
SMALL_FILE = 1 << 23  # bytes; a file up to this size is read at once
HIGHEST_PEAK = 4.0  # full scale is 1: more than 12 dB above it, the samples are in another unit
CLIPPED_SHARE = 0.01
SILENT_SHARE = 0.02  # of the channels' power, divided by their number: a mean below it has cancelled them
FAINT = 1e-8  # power of samples, full scale being 1, that is as good as silence
SPAN_SLACK = (
    0.1  # seconds by which a segment may end behind the recording: ends are rounded, decoders disagree
)
LOSSY_SLACK = 3  # frames of MPEG that a tag may count too many
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
        file = open_cached(self.path).fileno()
        # looked at before anything is read: a size that a manifest states wrongly would be allocated
        if min(self.offset, self.size) < 0 or self.offset + self.size > os.fstat(file).st_size:
            raise ValueError(f"{self.path} has no {self.size} bytes at {self.offset}")
        return os.pread(file, self.size - first if count is None else count, self.offset + first)


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


EncodedAudio = bytes | memoryview | Path | FilePart | RemoteClip


class PartStream(io.RawIOBase):
    """A part of a file, or a file elsewhere, as a file of its own: a header or a span is read without the rest."""

    def __init__(self, part: FilePart | RemoteClip) -> None:
        self.part, self.place = part, 0
        self.problem: Exception | None = None  # what is raised inside of libsndfile would be printed and lost

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
        try:
            data = self.part.read(self.place, max(0, min(len(buffer), self.part.size - self.place)))
        except (OSError, ValueError, RowError) as problem:
            self.problem = problem
            return 0
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


@dataclass(frozen=True)
class EncodedBytes:
    """Encoded audio in memory, read like a file."""

    data: bytes | memoryview

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, first: int, count: int) -> bytes:
        """Return ``count`` of the bytes from ``first`` on, fewer at the end."""
        return bytes(self.data[first : first + count])


class OpenFile:
    """A file on disk, read at any place; libsndfile gets its own descriptor of it.

    Args:
        is_whole: whether to read a small file at once, which is quicker where it is decoded as a whole.

    Attributes:
        content: of a file that was read at once, else nothing.
    """

    def __init__(self, path: Path, is_whole: bool = False) -> None:
        self.file = FileIO(path)
        self.size = os.fstat(self.file.fileno()).st_size
        self.content = self.file.read(self.size) if is_whole and self.size <= SMALL_FILE else b""

    def read(self, first: int, count: int) -> bytes:
        """Return ``count`` of the bytes from ``first`` on, fewer at the end."""
        if self.content:
            return self.content[first : first + count]
        return os.pread(self.file.fileno(), count, first)


@dataclass(frozen=True)
class PartReader:
    """A part of a file, read like a file of its own."""

    part: FilePart

    @property
    def size(self) -> int:
        return self.part.size

    def read(self, first: int, count: int) -> bytes:
        """Return ``count`` of the bytes from ``first`` on, fewer at the end."""
        return self.part.read(first, max(0, min(count, self.part.size - first)))


Reader = EncodedBytes | OpenFile | PartReader | RemoteClip


class ByteStream(io.BytesIO):
    """Bytes as a file: a damaged header may send libsndfile before their beginning, which is no error to print."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.getbuffer().nbytes}[whence]
        return super().seek(max(0, base + offset))


class ClipFile(soundfile.SoundFile):
    """An opened file that is read from its begin to its end and never sought without need.

    ``soundfile`` seeks after each read to where it is anyway: some kinds cannot, and a file whose end comes too early
    would raise an error that says nothing of it.

    Attributes:
        slack: frames that the header may state too many.
    """

    slack = 0

    def seekable(self) -> bool:
        return False

    def go_to(self, frame: int) -> None:
        """Go to a frame of a file that was just opened: by seeking where the kind of file can, else by reading."""
        if super().seekable():
            with suppress(soundfile.SoundFileError):
                self.seek(frame)
                return
        while frame > 0:
            count = len(self.read(min(frame, 1 << 16), dtype="int16"))
            if not count:
                return
            frame -= count


def parse_plain_wave(data: bytes | memoryview) -> tuple[NDArray[np.int16], int] | None:
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
            if size not in FORMAT_SIZES or rate:
                return None
            kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", data, place)
            if (kind, channels, block, bits) != (PCM, 1, 2, 16):
                return None
        elif name == b"data":
            if not rate or size < 2 or len(data) - place - size > riff.LEFTOVER:
                return None
            return np.frombuffer(data, "<i2", size // 2, place), rate
        place += size + size % 2
    return None


def open_reader(source: EncodedAudio | OpenFile, name: str) -> Reader:
    """Open a file, a part of one or bytes for reading at any place.

    A file elsewhere is read in parts where its format allows to go to a place in it; others are fetched whole, once.

    Raises:
        RowError: "missing file", "empty audio".
    """
    if isinstance(source, RemoteClip) and not is_read_in_parts(source):
        source = source.fetch()
    path = source.path if isinstance(source, FilePart) else source
    if isinstance(path, Path) and not path.is_file():
        raise RowError("missing file", str(path))
    if isinstance(source, FilePart):
        reader: Reader = PartReader(source)
        source.read(0, 0)  # whether the file has such a part
    elif isinstance(source, OpenFile | RemoteClip):
        reader = source
    else:
        reader = OpenFile(source) if isinstance(source, Path) else EncodedBytes(source)
    if reader.size == 0:
        raise RowError("empty audio", name)
    return reader


def is_read_in_parts(source: RemoteClip) -> bool:
    """Return whether a part of a file can be decoded without what lies before it."""
    head = source.read(0, 12)
    return head[:4] == flac.MARK or (head[:4] in riff.MARKS and head[8:] == b"WAVE")


@contextmanager
def open_streams(
    source: EncodedAudio | OpenFile, name: str, suffix: str = "", is_thorough: bool = False
) -> Iterator[list[ClipFile]]:
    """Open a file, a part of one or bytes with libsndfile (wav, flac, mp3, ogg, opus ...).

    What the file is its content says; only files without a header are told by the suffix. Headers are compared with
    what is there: what libsndfile would read in part without a word is refused here, or read whole.

    Args:
        suffix: of the file's name, with its dot. is_thorough: whether to look at all of a compressed file for damage,
            for one that is decoded as a whole.

    Yields:
        One file; several where streams are chained, to be read one after another.

    Raises:
        RowError: "missing file", "broken audio", "empty audio", "truncated audio".
    """
    with convert_to_row_error("broken audio", name), ExitStack() as stack:
        reader = open_reader(source, name)
        streams = []
        for data in choose_readers(reader, name, is_thorough):
            file = stack.enter_context(open_file(data, reader, name, suffix))
            streams.append(file)
        yield streams


def choose_readers(reader: Reader, name: str, is_thorough: bool) -> list[Reader]:
    """Return what libsndfile is to open in place of the file: nearly always the file itself.

    Raises:
        RowError: "truncated audio", "broken audio", "empty audio".
    """
    head = reader.read(0, 12)
    if head[:4] in riff.MARKS and head[8:] == b"WAVE":
        samples = riff.check_wave(reader.read, reader.size, name)
        if samples is not None and samples.stated == 0 < samples.present:  # a header that was never completed
            return [EncodedBytes(riff.state_size(reader.read(0, reader.size), samples))]
    elif head[:4] == flac.MARK:
        ending = check_flac(reader, name)
        if ending is not None:
            return [EncodedBytes(flac.state_total(reader.read(0, reader.size), ending.end))]
    elif head[:4] == ogg.MARK:
        if is_thorough or reader.size <= SMALL_FILE or ogg.is_chained(reader.read, reader.size, name):
            data = reader.read(0, reader.size)
            links = ogg.find_links(data, name)
            if len(links) > 1:
                return [EncodedBytes(data[begin:end]) for begin, end in links]
    elif head[:3] == b"ID3" or (head[:1] == b"\xff" and mpeg.parse_frame(head, 0) is not None):
        return [state_mpeg_length(reader, name, is_thorough)]
    return [reader]


def state_mpeg_length(reader: Reader, name: str, is_thorough: bool) -> Reader:
    """Return an MPEG file that states its length, and begins with its first frame: with a tag where it has none.

    Without one, libsndfile estimates the length from the first frame, and reads no further.

    Raises:
        RowError: "truncated audio", "broken audio".
    """
    survey = mpeg.survey(reader.read, reader.size, name, is_thorough)
    if survey is None or (survey.is_stated and survey.start == 0):
        return reader
    data = reader.read(survey.start, survey.end - survey.start)
    if survey.is_stated:
        return EncodedBytes(data)
    return EncodedBytes(mpeg.make_tag_frame(data, survey.samples // survey.frame_samples) + data)


def open_file(data: Reader, reader: Reader, name: str, suffix: str) -> ClipFile:
    """Open a file with libsndfile, by its content; where that says nothing, as MPEG behind junk or by the suffix.

    Args:
        data: what to open. reader: the whole file.

    Raises:
        RowError: "broken audio", "truncated audio".
    """
    try:
        file = ClipFile(make_handle(data))
    except soundfile.SoundFileError as problem:
        survey = mpeg.survey(reader.read, reader.size, name, is_thorough=True)
        if survey is not None:
            file = ClipFile(make_handle(state_mpeg_length(reader, name, is_thorough=True)))
        elif suffix.lower() in HEADERLESS and "not recognised" in str(problem):
            subtype, rate = HEADERLESS[suffix.lower()]
            file = ClipFile(make_handle(data), "r", rate, 1, subtype, "LITTLE", "RAW")
        else:
            raise make_broken_audio_error(name, problem) from problem
    if file.samplerate > HIGHEST_RATE or file.frames > MOST_FRAMES:
        facts = f"{name} (the header states {file.frames} frames at {file.samplerate} Hz)"
        file.close()
        raise RowError("broken audio", facts)
    if file.format == "MP3":
        file.slack = LOSSY_SLACK * 1152
    check_notes(file, reader.read, name)
    return file


def make_handle(data: Reader) -> Any:
    """Return what ``soundfile`` opens: never a path, for libsndfile would go by its suffix."""
    if isinstance(data, OpenFile):
        descriptor = os.dup(data.file.fileno())
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor
    if isinstance(data, PartReader | RemoteClip):
        return PartStream(data.part if isinstance(data, PartReader) else data)
    return ByteStream(data.data)


def open_for_header(source: EncodedAudio, name: str) -> soundfile.SoundFile:
    """Open a file, a part of one or bytes with libsndfile, to look at its header.

    Raises:
        RowError: "missing file", "broken audio", "empty audio", "truncated audio".
    """
    with convert_to_row_error("broken audio", name):
        reader = open_reader(source, name)
        return open_file(choose_readers(reader, name, False)[0], reader, name, "")


def make_broken_audio_error(name: str, problem: Exception) -> RowError:
    """Return what to say of audio that cannot be read; libsndfile's own words, without addresses of objects."""
    return RowError("broken audio", f"{name} ({getattr(problem, 'error_string', problem)})")


def probe_seconds(source: EncodedAudio, name: str = "", suffix: str = "") -> float:
    """Return the length in seconds as the header states it, or the frames where it states none.

    Raises:
        RowError: "missing file", "broken audio", "empty audio", "truncated audio".
    """
    name = name or str(source)[:200]
    with convert_to_row_error("broken audio", name):
        reader = open_reader(source, name)
        seconds = read_header_seconds(reader, name)
        if seconds is not None:
            return seconds
    with open_streams(source, name, suffix_of(source, suffix)) as streams:
        return sum(file.frames / file.samplerate for file in streams)


def read_header_seconds(reader: Reader, name: str) -> float | None:
    """Return the length of a plain WAV or FLAC file, which takes no library to know; None for any other.

    Raises:
        RowError: "truncated audio", "empty audio".
    """
    head = reader.read(0, 12)
    if head[:4] in riff.MARKS and head[8:] == b"WAVE":
        samples = riff.check_wave(reader.read, reader.size, name)
        if samples is not None and samples.frames and 0 < samples.rate <= HIGHEST_RATE:
            return samples.frames / samples.rate
    elif head[:4] == flac.MARK:
        info = flac.read_stream_info(reader.read)
        if info is not None and info.total and 0 < info.rate <= HIGHEST_RATE and info.total <= MOST_FRAMES:
            ending = check_flac(reader, name)
            return (ending.end if ending is not None else info.total) / info.rate
    return None


def check_flac(reader: Reader, name: str) -> flac.Ending | None:
    """Return how a FLAC stream ends where its header is wrong and all of it can be read.

    Raises:
        RowError: "truncated audio".
    """
    ending = flac.find_wrong_total(reader.read, reader.size)
    if ending is not None and (ending.end < ending.total or not ending.is_whole):
        stated = f"{ending.total} samples are stated, " if ending.total else ""
        raise RowError("truncated audio", f"{name}: {stated}the last FLAC frame ends at {ending.end}")
    return ending


def suffix_of(source: EncodedAudio, suffix: str) -> str:
    return suffix or (source.suffix if isinstance(source, Path) else "")


def decode(
    source: EncodedAudio,
    max_seconds: float,
    name: str,
    span: tuple[float, float] | None = None,
    notices: list[str] | None = None,
    suffix: str = "",
) -> NDArray[np.int16]:
    """Decode to ``[S]`` int16: the mean of the channels, resampled to 16 kHz (soxr, high quality).

    Args:
        name: how messages call the clip. span: (start, end) in seconds, to decode a part of a recording.
        notices: gets what is odd about the clip, see ``ClipNotice``.
        suffix: of the file's name, where ``source`` is no path; only files without a header need it.

    Raises:
        RowError: "missing file", "broken audio", "truncated audio", "empty audio", "non-finite samples",
            "samples out of range", "clip too long", "span outside of the recording".
    """
    suffix = suffix_of(source, suffix)
    opened: EncodedAudio | OpenFile = source
    if span is None:
        opened = read_at_once(source, name)
        content = opened.content if isinstance(opened, OpenFile) else opened
        if isinstance(content, bytes | memoryview):
            wave = parse_plain_wave(content)
            if (
                wave is not None
                and wave[1] == SAMPLE_RATE
                and len(wave[0]) <= max_seconds * SAMPLE_RATE * 1.001
            ):
                return wave[0]
    with open_streams(opened, name, suffix, is_thorough=span is None) as streams:
        if len(streams) == 1:
            return decode_stream(streams[0], max_seconds, name, span, notices)
        seconds = sum(file.frames / file.samplerate for file in streams)
        limit = max_seconds if span is None else seconds
        check_length(seconds, limit, name)
        whole = np.concatenate([decode_stream(file, limit, name, None, notices) for file in streams])
        return whole if span is None else cut_span(whole, span, max_seconds, name)


def read_at_once(source: EncodedAudio, name: str) -> EncodedAudio | OpenFile:
    """Return the bytes of a part of a file, or a file with its content where it is small.

    Raises:
        RowError: "broken audio" where the file has no such part.
    """
    if isinstance(source, FilePart) and source.path.is_file():
        with convert_to_row_error("broken audio", name):
            return source.read()
    if isinstance(source, RemoteClip):
        source = source.fetch()
    if isinstance(source, Path) and source.is_file():  # a device has no end, and a pipe waits for a writer
        with suppress(OSError, ValueError):  # opened again, that is told
            return OpenFile(source, is_whole=True)
    return source


def check_length(seconds: float, max_seconds: float, name: str) -> None:
    """Refuse a clip over the limit.

    Raises:
        RowError: "clip too long".
    """
    if seconds > max_seconds * 1.001:
        raise RowError("clip too long", f"{name}: {seconds:.1f} s, allowed {max_seconds:g} s")


def find_span_frames(span: tuple[float, float], rate: int, frames: int, name: str) -> tuple[int, int]:
    """Return the first frame of a span and its number of frames, within those that there are.

    Raises:
        RowError: "span outside of the recording".
    """
    first, end = (round(seconds * rate) for seconds in span)
    if not 0 <= first < min(end, frames) or end > frames + SPAN_SLACK * rate:
        raise RowError(
            "span outside of the recording", f"{name}: {span[0]:g} to {span[1]:g} s of {frames / rate:.2f} s"
        )
    return first, min(end, frames) - first


def cut_span(
    samples: NDArray[np.int16], span: tuple[float, float], max_seconds: float, name: str
) -> NDArray[np.int16]:
    """Return a span of samples at 16 kHz.

    Raises:
        RowError: "span outside of the recording", "clip too long".
    """
    first, count = find_span_frames(span, SAMPLE_RATE, len(samples), name)
    check_length(count / SAMPLE_RATE, max_seconds, name)
    return samples[first : first + count]


def decode_stream(
    file: ClipFile, max_seconds: float, name: str, span: tuple[float, float] | None, notices: list[str] | None
) -> NDArray[np.int16]:
    """Decode an opened file, see ``decode``."""
    rate, first, frames = file.samplerate, 0, file.frames
    if span is not None:
        first, frames = find_span_frames(span, rate, file.frames, name)
    check_length(frames / rate, max_seconds, name)
    # already what is asked for: 16 bits of one channel at 16 kHz need no way through floats
    ready = rate == SAMPLE_RATE and file.channels == 1 and file.subtype == "PCM_16"
    try:
        if first:
            file.go_to(first)
        samples = file.read(frames, dtype="int16" if ready else "float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, MemoryError) as problem:
        raise make_broken_audio_error(name, problem) from problem
    if isinstance(file.name, PartStream) and file.name.problem is not None:
        if isinstance(file.name.problem, RowError):
            raise file.name.problem
        raise make_broken_audio_error(name, file.name.problem)
    if len(samples) + file.slack < frames:
        raise RowError(
            "truncated audio",
            f"{name}: {frames / rate:.2f} s are stated, {len(samples) / rate:.2f} s can be decoded",
        )
    if not len(samples):
        raise RowError("empty audio", name)
    if ready:
        return samples[:, 0]
    mono = mix_channels(samples, notices)
    check_range(mono, samples, file.subtype in ("FLOAT", "DOUBLE"), name, notices)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if not len(mono):
        raise RowError("empty audio", name)
    mono = np.multiply(mono, np.float32(QUANTA))
    return np.clip(np.rint(mono, out=mono), -32768, 32767, out=mono).astype(np.int16)


def mix_channels(samples: NDArray[np.float32], notices: list[str] | None) -> NDArray[np.float32]:
    """Return the mean of the channels of ``[S, C]``, or the loudest of them where they cancel each other."""
    channels = samples.shape[1]
    if channels == 1:
        return samples[:, 0]
    mono: NDArray[np.float32] = samples.mean(axis=1)
    flat = samples.reshape(-1)
    power = float(np.dot(flat, flat)) / len(flat)
    if not FAINT < power < np.inf or float(np.dot(mono, mono)) / len(mono) >= SILENT_SHARE / channels * power:
        return mono
    if notices is not None:
        notices.append(ANTI_PHASE)
    loudest = int(np.argmax([np.dot(channel, channel) for channel in samples.T]))
    return np.ascontiguousarray(samples[:, loudest])


def check_range(
    mono: NDArray[np.float32],
    samples: NDArray[np.float32],
    is_float: bool,
    name: str,
    notices: list[str] | None,
) -> None:
    """Refuse samples that are no numbers or in another unit than floats are; note those that are limited.

    Raises:
        RowError: "non-finite samples", "samples out of range".
    """
    if not np.isfinite(mono).all():
        raise RowError("non-finite samples", name)
    if not is_float:
        return
    peak = max(float(samples.max()), -float(samples.min()))
    if peak > HIGHEST_PEAK:
        raise RowError(
            "samples out of range",
            f"{name}: floats up to {peak:g}, full scale is 1; divide them by their full scale when they are written",
        )
    if notices is not None and peak > 1 and np.mean(np.abs(mono) > 1) > CLIPPED_SHARE:
        notices.append(CLIPPED)
