"""Augmentations of waveforms: functions of the samples and of the example's own random generator, and of nothing else.

A continued run therefore degrades its clips exactly as an uninterrupted one. Libraries of ready transforms draw from
global generators, which would break this; the signal processing itself is SciPy's, soxr's and libsndfile's. SciPy is
imported where it is used: that takes half a second, and most runs augment nothing.
"""

from __future__ import annotations

import io
import math
import random
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from uniaudio.config.records import Strict, list_texts
from uniaudio.data.audio import decode, scale_to_floats
from uniaudio.data.sources.folder_walk import SUFFIXES, describe_suffix, walk_files
from uniaudio.errors import RowError
from uniaudio.types import SAMPLE_RATE

Wave = NDArray[np.float32]
LONGEST_FILE = 600.0  # seconds of a noise or an impulse response
SILENCE = 1e-8  # mean power below which a clip has no level to set noise against
FADED = 6.9078  # ln(1000): the amplitude of a response has fallen by 60 dB
LONGEST_LAG = 4096  # samples by which a codec may delay a clip


@lru_cache(maxsize=64)
def find_audio_files(folder: str) -> tuple[tuple[Path, ...], Counter[str]]:
    """Return the audio files below a folder, sorted, for their order is part of what is drawn; and what is skipped.

    Links are followed as in folders of clips.
    """
    left_out: Counter[str] = Counter()
    files = []
    for file in sorted(walk_files(Path(folder).expanduser(), left_out)):
        if file.suffix.lower() in SUFFIXES:
            files.append(file)
        else:
            left_out[describe_suffix(file)] += 1
    return tuple(files), left_out


@lru_cache(maxsize=128)
def decode_file(path: Path) -> Wave:
    return scale_to_floats(decode(path, LONGEST_FILE, str(path)))


def load_random_file(folder: str, rng: random.Random) -> Wave:
    """Return the samples of a random file of a folder."""
    wave = decode_file(rng.choice(find_audio_files(folder)[0]))
    if float(np.abs(wave).max()) == 0:
        raise RowError("broken augmentation", f"a file of {folder} is silent")
    return wave


def cut_random_part(folder: str, count: int, rng: random.Random) -> Wave:
    """Return ``count`` samples of a random file from a random place on, the file repeated where it is short."""
    wave = load_random_file(folder, rng)
    if len(wave) > count:
        begin = rng.randrange(len(wave) - count + 1)
        return wave[begin : begin + count]
    return np.resize(np.roll(wave, -rng.randrange(len(wave))), count)


def check_rising(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"the range must increase, got {values[0]:g} to {values[1]:g}")
    return values


CodecName = Literal["mp3", "ogg", "opus", "mulaw"]
Range = Annotated[tuple[float, float], AfterValidator(check_rising)]


class Transform(Strict):
    """An augmentation of the waveform.

    Read by: train.
    """

    p: float = Field(default=1.0, gt=0, le=1)
    """Probability with which a clip is changed."""

    @property
    def longest_stretch(self) -> float:
        """The largest ratio of a clip's length afterwards to that before."""
        return 1.0

    @property
    def mean_stretch(self) -> float:
        """The expected ratio of a clip's length afterwards to that before."""
        return 1.0

    def apply(self, wave: Wave, rng: random.Random) -> Wave:
        """Return the changed samples, float32 ``[S']`` in about -1 to 1."""
        raise NotImplementedError


class Gain(Transform):
    """A change of level."""

    db: Range
    """Range of the change in decibels."""

    def apply(self, wave: Wave, rng: random.Random) -> Wave:
        return wave * np.float32(10 ** (rng.uniform(*self.db) / 20))


class Noise(Transform):
    """Additive noise: generated, or a random part of a file."""

    snr_db: Range
    """Range of the signal-to-noise ratio in decibels."""
    kind: Literal["white", "pink", "brown"] = "white"
    """Spectrum of generated noise: `white` (flat), `pink` (1/f) or `brown` (1/f²)."""
    files: str | None = None
    """Folder of recordings to take noise from. Default: noise is generated."""

    def apply(self, wave: Wave, rng: random.Random) -> Wave:
        snr = rng.uniform(*self.snr_db)
        noise = (
            self.generate_wave(len(wave), rng)
            if self.files is None
            else cut_random_part(self.files, len(wave), rng)
        )
        power, level = float(np.mean(wave**2)), float(np.mean(noise**2))
        if power < SILENCE or level < SILENCE:
            return wave
        return wave + noise * np.float32(np.sqrt(power / level / 10 ** (snr / 10)))

    def generate_wave(self, count: int, rng: random.Random) -> Wave:
        """Return noise whose power falls with no (white), the first (pink) or the second power (brown) of frequency."""
        white = np.random.default_rng(rng.getrandbits(64)).standard_normal(count)
        slope = {"white": 0.0, "pink": 0.5, "brown": 1.0}[self.kind]
        spectrum = np.fft.rfft(white)
        spectrum[1:] /= np.arange(1, len(spectrum)) ** slope
        spectrum[0] = 0.0 if slope else spectrum[0]
        noise = np.fft.irfft(spectrum, count)
        return (noise / max(float(np.sqrt(np.mean(noise**2))), 1e-9)).astype(np.float32)


class Reverb(Transform):
    """Reverberation: convolution with an impulse response, recorded or generated."""

    rt60: Range = (0.2, 0.8)
    """Range of the reverberation time in seconds (decay by 60 dB) of a generated response."""
    direct: float = Field(default=1.0, gt=0)
    """Amplitude of the direct sound of a generated response, whose tail has energy 1."""
    files: str | None = None
    """Folder of impulse responses. Default: decaying noise is generated."""

    def apply(self, wave: Wave, rng: random.Random) -> Wave:
        from scipy import signal

        response = self.generate_response(rng) if self.files is None else load_random_file(self.files, rng)
        begin = int(np.argmax(np.abs(response)))  # the direct sound: the clip must not be moved
        wet = signal.fftconvolve(wave, response[begin:])[: len(wave)]
        before, after = float(np.mean(wave**2)), float(np.mean(wet**2))
        return (wet * np.sqrt(before / after) if after > SILENCE else wave).astype(np.float32)

    def generate_response(self, rng: random.Random) -> Wave:
        seconds = rng.uniform(*self.rt60)
        time = np.arange(max(1, round(seconds * SAMPLE_RATE))) / SAMPLE_RATE
        tail = np.random.default_rng(rng.getrandbits(64)).standard_normal(len(time)) * np.exp(
            -FADED * time / seconds
        )
        tail *= 1 / max(float(np.sqrt(np.sum(tail**2))), 1e-9)
        tail[0] = max(self.direct, float(np.abs(tail).max()))
        return tail.astype(np.float32)


class Speed(Transform):
    """A change of speed and pitch, by resampling."""

    factor: Range
    """Range of the factor, within 0.5 and 2; above 1 is faster."""

    @model_validator(mode="after")
    def check_range(self) -> Speed:
        if not 0.5 <= self.factor[0] <= self.factor[1] <= 2.0:
            raise ValueError("factor must stay between 0.5 and 2")
        return self

    @property
    def longest_stretch(self) -> float:
        slowest = 1 / self.factor[0]
        return slowest if self.p == 1 else max(1.0, slowest)

    @property
    def mean_stretch(self) -> float:
        low, width = self.factor[0], self.factor[1] - self.factor[0]
        # the mean of 1 / factor, which is drawn uniformly
        changed = math.log1p(width / low) / width if width > 0 else 1 / low
        return 1 - self.p + self.p * changed

    def apply(self, wave: Wave, rng: random.Random) -> Wave:
        factor = rng.uniform(*self.factor)
        return soxr.resample(wave, SAMPLE_RATE * factor, SAMPLE_RATE, quality="HQ")


class Resample(Transform):
    """Down to a lower sampling rate and back."""

    rate: Range
    """Range of the lower sampling rate in Hz, within 1000 and 16000."""

    @model_validator(mode="after")
    def check_range(self) -> Resample:
        if not 1000 <= self.rate[0] <= self.rate[1] <= SAMPLE_RATE:
            raise ValueError(f"rate must stay between 1000 and {SAMPLE_RATE}")
        return self

    def apply(self, wave: Wave, rng: random.Random) -> Wave:
        rate = round(rng.uniform(*self.rate))
        low = soxr.resample(wave, SAMPLE_RATE, rate, quality="HQ")
        return fit_length(soxr.resample(low, rate, SAMPLE_RATE, quality="HQ"), len(wave))


class Band(Transform):
    """A band-pass filter (Butterworth of fourth order, zero phase)."""

    low_hz: Range
    """Range of the lower edge in Hz, at least 10."""
    high_hz: Range
    """Range of the upper edge in Hz, below 8000."""

    @model_validator(mode="after")
    def check_range(self) -> Band:
        if not 10 <= self.low_hz[0] <= self.low_hz[1] < self.high_hz[0] <= self.high_hz[1] < SAMPLE_RATE / 2:
            raise ValueError("needs 10 <= low_hz < high_hz < 8000, in ranges that do not overlap")
        return self

    def apply(self, wave: Wave, rng: random.Random) -> Wave:
        from scipy import signal

        edges = (rng.uniform(*self.low_hz), rng.uniform(*self.high_hz))
        sections = signal.butter(4, edges, "bandpass", fs=SAMPLE_RATE, output="sos")
        return signal.sosfiltfilt(sections, wave, padlen=min(27, len(wave) - 1)).astype(np.float32)


class Codec(Transform):
    """Through a lossy codec and back."""

    kind: Annotated[
        tuple[CodecName, ...],
        BeforeValidator(list_texts, json_schema_input_type=CodecName | tuple[CodecName, ...]),
    ] = Field(min_length=1)
    """Codec, or a list to draw from: `mp3`, `ogg` (Vorbis), `opus`, `mulaw` (telephone)."""
    quality: Range = (0.5, 0.9)
    """Range of libsndfile's compression level, 0 (best) to 1 (smallest)."""

    def apply(self, wave: Wave, rng: random.Random) -> Wave:
        kind, level = rng.choice(self.kind), rng.uniform(*self.quality)
        wave = np.clip(wave, -1, 1)
        if kind == "mulaw":
            pressed = np.sign(wave) * np.log1p(255 * np.abs(wave)) / np.log(256)
            steps = np.round(pressed * 127) / 127
            return (np.sign(steps) * np.expm1(np.abs(steps) * np.log(256)) / 255).astype(np.float32)
        form, subtype = {
            "mp3": ("MP3", "MPEG_LAYER_III"),
            "ogg": ("OGG", "VORBIS"),
            "opus": ("OGG", "OPUS"),
        }[kind]
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, SAMPLE_RATE, format=form, subtype=subtype, compression_level=level)
        buffer.seek(0)
        back = soundfile.read(buffer, dtype="float32")[0]
        return fit_length(back[estimate_lag(wave, back) :], len(wave))


class Clip(Transform):
    """Clipping of the waveform."""

    share: Range
    """Range of the clipping level as a share of the highest peak."""

    @model_validator(mode="after")
    def check_range(self) -> Clip:
        if not 0 < self.share[0] <= self.share[1] <= 1:
            raise ValueError("share must stay between 0 and 1")
        return self

    def apply(self, wave: Wave, rng: random.Random) -> Wave:
        limit = rng.uniform(*self.share) * float(np.abs(wave).max())
        return np.clip(wave, -limit, limit)


def fit_length(wave: Wave, count: int) -> Wave:
    """Return exactly ``count`` samples: cut, or followed by silence."""
    return np.pad(wave[:count], (0, max(0, count - len(wave)))).astype(np.float32)


def estimate_lag(wave: Wave, back: Wave) -> int:
    """Return by how many samples a codec delayed a clip, by the peak of the correlation of their beginnings."""
    if len(back) <= len(wave):
        return 0
    from scipy import signal

    head = min(len(wave), 4 * LONGEST_LAG)
    search = min(len(back) - len(wave), LONGEST_LAG)
    scores = signal.correlate(back[: head + search], wave[:head], mode="valid", method="fft")
    return int(np.argmax(scores))
