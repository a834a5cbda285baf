"""Synthetic instruments and sound events: a few lines of signal processing each, never twice the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uniaudio.types import SAMPLE_RATE

Sound = NDArray[np.float64]
Synth = Callable[[np.random.Generator, int], Sound]


def make_times(size: int) -> Sound:
    """``[S]`` the time of every sample."""
    return np.arange(size) / SAMPLE_RATE


def make_tone(
    frequency: float | Sound, size: int, partials: Sequence[float] | Sound, spread: float = 0.0
) -> Sound:
    """Return a sum of harmonics below 7.5 kHz.

    Args:
        frequency: fundamental in Hz, or one a sample.
        size: samples.
        partials: amplitudes, the fundamental's first.
        spread: how far the upper ones lie above whole multiples, as on a stiff string.
    """
    track = np.broadcast_to(np.asarray(frequency, dtype=float), (size,))
    phase = 2 * np.pi * np.cumsum(track) / SAMPLE_RATE
    wave = np.zeros(size)
    for k, amplitude in enumerate(partials, start=1):
        ratio = k * np.sqrt(1 + spread * k * k)
        if ratio * track.max() < 7500:
            wave += amplitude * np.sin(ratio * phase + k * k)
    return wave


def filter_band(noise: Sound, low: float, high: float) -> Sound:
    """Keep what lies between two frequencies in Hz, with soft edges."""
    spectrum = np.fft.rfft(noise)
    frequency = np.fft.rfftfreq(len(noise), 1 / SAMPLE_RATE)
    gain = 1 / (1 + (low / (frequency + 1)) ** 4) / (1 + (frequency / high) ** 4)
    return np.fft.irfft(spectrum * gain, len(noise))


def make_envelope(size: int, attack: float, decay: float | None = None) -> Sound:
    """Envelope: linear rise over ``attack`` seconds, then steady or falling by e every ``decay`` seconds."""
    time = make_times(size)
    envelope = np.minimum(time / attack, 1.0)
    if decay is not None:
        envelope = envelope * np.exp(-np.maximum(time - attack, 0) / decay)
    return envelope * np.minimum((time[-1] - time) / 0.02, 1.0)


def place_hits(size: int, starts: Sequence[float] | NDArray[Any], hit: Callable[[], Sound]) -> Sound:
    """Add a freshly made ``hit`` at every start time (seconds) that lies within the clip."""
    wave = np.zeros(size)
    for start in starts:
        at = int(start * SAMPLE_RATE)
        if at < size:
            sound = hit()[: size - at]
            wave[at : at + len(sound)] += sound
    return wave


def flute(frequency: float, rng: np.random.Generator, size: int) -> Sound:
    vibrato = 1 + 0.006 * np.sin(2 * np.pi * rng.uniform(4, 6) * make_times(size))
    breath = 0.15 * filter_band(rng.standard_normal(size), frequency, 4 * frequency)
    return (make_tone(frequency * vibrato, size, [1, 0.25, 0.08, 0.03]) + breath) * make_envelope(size, 0.08)


def violin(frequency: float, rng: np.random.Generator, size: int) -> Sound:
    vibrato = 1 + 0.012 * np.sin(2 * np.pi * rng.uniform(5, 7) * make_times(size))
    partials = 1 / np.arange(1, 20) * rng.uniform(0.5, 1.2, 19)
    return make_tone(frequency * vibrato, size, partials) * make_envelope(size, rng.uniform(0.1, 0.25))


def organ(frequency: float, rng: np.random.Generator, size: int) -> Sound:
    stops = np.zeros(16)
    stops[[0, 1, 2, 3, 5, 7, 15]] = rng.uniform(0.4, 1.0, 7)
    return make_tone(frequency / 2, size, stops) * make_envelope(size, 0.02)


def clarinet(frequency: float, rng: np.random.Generator, size: int) -> Sound:
    partials = np.array([(k % 2) / k + 0.03 for k in range(1, 16)]) * rng.uniform(0.7, 1.3, 15)
    return make_tone(frequency, size, partials) * make_envelope(size, 0.05)


def trumpet(frequency: float, rng: np.random.Generator, size: int) -> Sound:
    opening = make_envelope(size, rng.uniform(0.06, 0.12))
    dull, bright = np.exp(-np.arange(14) / 1.5), np.exp(-np.arange(14) / 6)
    return opening * (
        (1 - opening) * make_tone(frequency, size, dull) + opening * make_tone(frequency, size, bright)
    )


def guitar(frequency: float, rng: np.random.Generator, size: int) -> Sound:
    """Karplus-Strong: a burst of noise runs round a loop that averages neighbours."""
    period = max(2, round(SAMPLE_RATE / frequency))
    loop = rng.uniform(-1, 1, period)
    rounds = []
    for _ in range(size // period + 1):
        rounds.append(loop)
        loop = 0.996 * (0.5 * loop + 0.5 * np.roll(loop, 1))
    return np.concatenate(rounds)[:size] * make_envelope(size, 0.002, 1.5)


def piano(frequency: float, rng: np.random.Generator, size: int) -> Sound:
    wave = np.zeros(size)
    for k in range(1, 10):
        partial = np.zeros(k)
        partial[-1] = rng.uniform(0.6, 1.0) / k
        wave += make_tone(frequency, size, partial, spread=0.0006) * make_envelope(size, 0.004, 0.9 / k)
    return wave


def marimba(frequency: float, rng: np.random.Generator, size: int) -> Sound:
    wave = np.zeros(size)
    for ratio, amplitude, decay in ((1, 1.0, 0.22), (3.93, 0.5, 0.07), (9.2, 0.25, 0.03)):
        fall = make_envelope(size, 0.002, decay * rng.uniform(0.8, 1.3))
        wave += make_tone(frequency * ratio, size, [amplitude]) * fall
    return wave


INSTRUMENTS: dict[str, Callable[[float, np.random.Generator, int], Sound]] = {
    "flute": flute,
    "violin": violin,
    "organ": organ,
    "clarinet": clarinet,
    "trumpet": trumpet,
    "guitar": guitar,
    "piano": piano,
    "marimba": marimba,
}


def dog(rng: np.random.Generator, size: int) -> Sound:
    base, length = rng.uniform(280, 650), int(rng.uniform(0.1, 0.22) * SAMPLE_RATE)

    def bark() -> Sound:
        fall = base * np.linspace(1.3, 0.7, length)
        voice = make_tone(fall, length, 1 / np.arange(1, 10)) + filter_band(
            rng.standard_normal(length), 400, 2500
        )
        return voice * make_envelope(length, 0.015, 0.08)

    return place_hits(size, np.cumsum(rng.uniform(0.25, 0.45, rng.integers(1, 4))) - 0.2, bark)


def siren(rng: np.random.Generator, size: int) -> Sound:
    low, high, rate = rng.uniform(450, 750), rng.uniform(1000, 1600), rng.uniform(0.8, 3)
    swing = np.sin(2 * np.pi * rate * make_times(size) + rng.uniform(0, 6))
    if rng.random() < 0.3:
        swing = np.sign(swing)
    return make_tone((low + high) / 2 + (high - low) / 2 * swing, size, [1, 0.3, 0.15])


def rain(rng: np.random.Generator, size: int) -> Sound:
    drops = np.where(rng.random(size) < rng.uniform(0.001, 0.004), rng.standard_normal(size), 0)
    return filter_band(rng.standard_normal(size), 600, 6000) * rng.uniform(0.15, 0.4) + 4 * filter_band(
        drops, 1500, 7000
    )


def clock(rng: np.random.Generator, size: int) -> Sound:
    pitch, step = rng.uniform(1800, 4200), rng.uniform(0.22, 0.5)
    length = int(0.03 * SAMPLE_RATE)

    def tick() -> Sound:
        return (make_tone(pitch, length, [1]) + 0.5 * rng.standard_normal(length)) * make_envelope(
            length, 0.001, 0.005
        )

    return place_hits(size, rng.uniform(0, step) + step * np.arange(int(4 / step)), tick)


def engine(rng: np.random.Generator, size: int) -> Sound:
    wobble = 1 + 0.04 * np.sin(2 * np.pi * rng.uniform(0.5, 3) * make_times(size))
    hum = make_tone(rng.uniform(35, 95) * wobble, size, np.exp(-np.arange(24) / 8) * rng.uniform(0.3, 1, 24))
    return hum + 0.4 * filter_band(rng.standard_normal(size), 40, 500)


def bell(rng: np.random.Generator, size: int) -> Sound:
    base, decay = rng.uniform(350, 1000), rng.uniform(0.4, 1.0)
    partials = ((0.5, 0.5), (1, 1.0), (1.19, 0.7), (1.5, 0.4), (2, 0.8), (2.74, 0.4), (3.76, 0.25))
    return place_hits(
        size,
        [rng.uniform(0, 0.3)],
        lambda: np.sum(
            [
                make_tone(base * r, size, [a]) * make_envelope(size, 0.002, decay / np.sqrt(r))
                for r, a in partials
            ],
            axis=0,
        ),
    )


def whistle(rng: np.random.Generator, size: int) -> Sound:
    slide = np.linspace(rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.2), size)
    trill = 1 + 0.02 * np.sin(2 * np.pi * rng.uniform(5, 25) * make_times(size))
    pitch = rng.uniform(1400, 2800) * slide * trill
    return (
        make_tone(pitch, size, [1]) + 0.1 * filter_band(rng.standard_normal(size), 1500, 5000)
    ) * make_envelope(size, 0.05)


def knock(rng: np.random.Generator, size: int) -> Sound:
    pitch, length = rng.uniform(90, 260), int(0.12 * SAMPLE_RATE)

    def thump() -> Sound:
        body = make_tone(pitch, length, [1, 0.5, 0.2], spread=0.3)
        return (body + 0.4 * filter_band(rng.standard_normal(length), 80, 900)) * make_envelope(
            length, 0.002, 0.025
        )

    return place_hits(
        size, rng.uniform(0, 0.3) + rng.uniform(0.14, 0.28) * np.arange(rng.integers(2, 6)), thump
    )


EVENTS: dict[str, Synth] = {
    "dog": dog,
    "siren": siren,
    "rain": rain,
    "clock": clock,
    "engine": engine,
    "bell": bell,
    "whistle": whistle,
    "knock": knock,
}


def record(wave: Sound | NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.int16]:
    """As a cheap microphone in some room would: background noise at 8 to 30 dB below, a tilt, a random level.

    The level and the tilt are drawn per clip, so that neither loudness nor background tells the class.
    """
    tilted = wave + rng.uniform(-0.4, 0.4) * np.concatenate([[0.0], wave[:-1]])
    noise = filter_band(rng.standard_normal(len(wave)), 20, rng.uniform(500, 7000))
    power = np.sqrt(np.mean(tilted**2) / (np.mean(noise**2) + 1e-12))
    mixed = tilted + noise * power * 10 ** (-rng.uniform(8, 30) / 20)
    return np.round(mixed / np.abs(mixed).max() * rng.uniform(0.1, 0.9) * 32767).astype(np.int16)
