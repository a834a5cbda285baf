"""Decoding of audio to int16 mono samples at 16 kHz, and what is odd about clips that are used."""

from __future__ import annotations

import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from uniaudio.data.audio_files import ClipFile, make_broken_audio_error, open_streams, suffix_of
from uniaudio.data.containers import riff
from uniaudio.data.encoded_audio import EncodedAudio, FilePart, OpenFile, PartStream, RemoteClip
from uniaudio.errors import RowError, convert_to_row_error
from uniaudio.types import SAMPLE_RATE

ANTI_PHASE = "anti-phase channels"
CLIPPED = "clipped samples"
SILENT = "silent clip"
ADVICE = {
    ANTI_PHASE: "their mean is silent, so the loudest channel is used",
    SILENT: "all its samples are zero, or smaller than 16 bits can hold (16-bit numbers in a file of 32 bits?)",
    CLIPPED: "more than 1 % of the samples exceed full scale and were clipped to it",
}
QUANTA = 32768.0  # of int16 in one
FORMAT_SIZES = (16, 18, 40)  # bytes that describe the samples in a WAV file
HIGHEST_PEAK = 4.0  # full scale is 1: more than 12 dB above it, the samples are in another unit
CLIPPED_SHARE = 0.01
SILENT_SHARE = 0.02  # of the channels' power, divided by their number: a mean below it has cancelled them
FAINT = 1e-8  # power of samples, full scale being 1, that is as good as silence
# seconds by which a segment may end behind the recording: ends are rounded, decoders disagree
SPAN_SLACK = 0.1


@dataclass(frozen=True)
class ClipNotice:
    """A clip that is used, and what a person should know about it.

    Args:
        source: name of the dataset. row: key of the row. kind: short, stable, countable.
    """

    source: str
    row: str
    kind: str

    @property
    def sentence(self) -> str:
        """Say it of the first such clip of a source."""
        return (
            f"dataset {self.source}: {self.kind} in row {self.row}: "
            f"{ADVICE.get(self.kind, 'the clip is unusual')} (further ones are counted in "
            "metrics.jsonl at each checkpoint)"
        )


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
                note_silence(wave[0], notices)
                return wave[0]
    with open_streams(opened, name, suffix, is_thorough=span is None) as streams:
        if len(streams) == 1:
            return decode_stream(streams[0], max_seconds, name, span, notices)
        seconds = sum(file.frames / file.samplerate for file in streams)
        limit = max_seconds if span is None else seconds
        check_length(seconds, limit, name)
        whole = np.concatenate([decode_stream(file, limit, name, None, notices) for file in streams])
        return whole if span is None else cut_span(whole, span, max_seconds, name)


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
            if (kind, channels, block, bits) != (riff.PCM, 1, 2, 16):
                return None
        elif name == b"data":
            if not rate or size < 2 or len(data) - place - size > riff.LEFTOVER:
                return None
            return np.frombuffer(data, "<i2", size // 2, place).copy(), rate  # one that torch may write to
        place += size + size % 2
    return None


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
        note_silence(samples, notices)
        return samples[:, 0]
    mono = mix_channels(samples, notices)
    check_range(mono, samples, file.subtype in ("FLOAT", "DOUBLE"), name, notices)
    if rate != SAMPLE_RATE:
        mono = soxr.resample(mono, rate, SAMPLE_RATE, quality="HQ")
    if not len(mono):
        raise RowError("empty audio", name)
    quantized = quantize_samples(mono)
    note_silence(quantized, notices)
    return quantized


def note_silence(samples: NDArray[np.int16], notices: list[str] | None) -> None:
    """Note a clip whose samples are all zero: it is used, for silence may be what its answer speaks of."""
    if notices is not None and not samples.any():
        notices.append(SILENT)


def quantize_samples(wave: NDArray[np.float32]) -> NDArray[np.int16]:
    """Return float samples as int16, those beyond full scale limited to it."""
    scaled = np.multiply(wave, np.float32(QUANTA))
    return np.clip(np.rint(scaled, out=scaled), -32768, 32767, out=scaled).astype(np.int16)


def scale_to_floats(samples: NDArray[np.int16]) -> NDArray[np.float32]:
    """Return int16 samples as floats in [-1, 1)."""
    return samples.astype(np.float32) / np.float32(QUANTA)


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
            f"{name}: floats up to {peak:g}, but full scale is 1; divide the samples by their full "
            "scale before writing them",
        )
    if notices is not None and peak > 1 and np.mean(np.abs(mono) > 1) > CLIPPED_SHARE:
        notices.append(CLIPPED)
