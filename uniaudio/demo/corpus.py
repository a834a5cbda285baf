"""The generated corpus: four small sets of sounds and speech, written as folders with a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray

from uniaudio.demo.sounds import EVENTS, INSTRUMENTS, record
from uniaudio.demo.speech import Voice, is_speech_available, speak
from uniaudio.types import SAMPLE_RATE

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# The test voices are not heard in training. Voices that differ from process to process (f2, f3, f5) are out.
TRAIN_VOICES = ("m1", "m3", "m4", "m7", "f1", "f4", "Andy", "Lee", "belinda", "anika")
TEST_VOICES = ("m2", "m5", "Annie", "linda")
ACCENTS = ("en-us", "en", "en-gb-scotland")  # "en" is British

CLIP = int(1.2 * SAMPLE_RATE)  # samples of an instrument note or a sound event


@dataclass(frozen=True)
class Sizes:
    """Clips per class and split (per split for the digit strings)."""

    train: int = 40
    test: int = 16
    train_strings: int = 800
    test_strings: int = 64


QUICK = Sizes(train=4, test=2, train_strings=12, test_strings=6)

LabelledClip = tuple[NDArray[np.int16], dict[str, Any]]


def build_corpus(folder: Path, seed: int = 0, sizes: Sizes | None = None) -> dict[str, Path]:
    """Write all sets below ``folder`` and return their folders by name.

    ``sounds`` (8 sound events) and ``instruments`` (8 instruments at 25 pitches) are synthetic; ``digits`` (single
    spoken digits) and ``strings`` (of 2 to 4 digits, test strings absent from training) are spoken by espeak-ng
    and are left out where the optional wheel is missing. The same seed gives the same files, for
    speech in a fresh process only: espeak-ng carries a noise generator from one word to the next.
    """
    sizes = sizes or Sizes()
    makers = {"sounds": draw_sound_clips, "instruments": draw_instrument_clips}
    if is_speech_available():
        makers |= {"digits": draw_digit_clips, "strings": draw_string_clips}
    return {
        name: write_corpus_set(folder / name, maker(np.random.default_rng([seed, number]), sizes))
        for number, (name, maker) in enumerate(makers.items())
    }


def write_corpus_set(folder: Path, clips: Iterator[LabelledClip]) -> Path:
    """Write clips as 16-bit wav, and their facts with ``audio`` and ``duration`` as ``manifest.jsonl``."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (samples, facts) in enumerate(clips):
        name = f"audio/{facts['split']}_{number:04d}.wav"
        soundfile.write(folder / name, samples, SAMPLE_RATE, subtype="PCM_16")
        lines.append(json.dumps({"audio": name, "duration": round(len(samples) / SAMPLE_RATE, 4), **facts}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def repeat_splits(train: int, test: int) -> Iterator[str]:
    """``train`` times "train", then ``test`` times "test"."""
    yield from ["train"] * train + ["test"] * test


def draw_sound_clips(rng: np.random.Generator, sizes: Sizes) -> Iterator[LabelledClip]:
    """Every event with its own drawn pitch, speed and colour each time."""
    for label, synth in EVENTS.items():
        for split in repeat_splits(sizes.train, sizes.test):
            yield record(synth(rng, CLIP), rng), {"label": label, "split": split}


def draw_instrument_clips(rng: np.random.Generator, sizes: Sizes) -> Iterator[LabelledClip]:
    """Every instrument at pitches from C3 to C5 (MIDI 48 to 72): pitch does not tell the instrument."""
    for label, synth in INSTRUMENTS.items():
        for split in repeat_splits(sizes.train, sizes.test):
            midi = int(rng.integers(48, 73))
            frequency = 440 * 2 ** ((midi + rng.uniform(-0.2, 0.2) - 69) / 12)
            yield record(synth(frequency, rng, CLIP), rng), {"label": label, "split": split, "midi": midi}


def draw_voice(rng: np.random.Generator, split: str) -> Voice:
    """A voice of the split with drawn accent, speed and pitch."""
    variant = str(rng.choice(TRAIN_VOICES if split == "train" else TEST_VOICES))
    accent = str(rng.choice(ACCENTS))
    return Voice(
        f"{accent}+{variant}",
        int(rng.integers(140, 220)),
        int(rng.integers(25, 75)),
        int(rng.integers(20, 80)),
    )


def draw_spoken_clip(text: str, rng: np.random.Generator, split: str) -> tuple[NDArray[np.int16], str]:
    """The recorded text with up to 0.2 s of room before and after, and the name of the voice."""
    voice = draw_voice(rng, split)
    before, after = (int(rng.uniform(0.02, 0.2) * SAMPLE_RATE) for _ in range(2))
    noise = rng.spawn(1)[0]  # its own, so that the length of the speech does not move later draws
    return record(np.pad(speak(text, voice), (before, after)), noise), voice.name


def draw_digit_clips(rng: np.random.Generator, sizes: Sizes) -> Iterator[LabelledClip]:
    """Single digits; the voices of the test split do not occur in training."""
    for label in DIGITS:
        for split in repeat_splits(sizes.train, sizes.test):
            samples, voice = draw_spoken_clip(label, rng, split)
            yield samples, {"label": label, "split": split, "speaker": voice}


def draw_string_clips(rng: np.random.Generator, sizes: Sizes) -> Iterator[LabelledClip]:
    """Strings of 2 to 4 digits; neither the strings nor the voices of the test split occur in training."""
    used: dict[str, str] = {}
    for split in repeat_splits(sizes.train_strings, sizes.test_strings):
        while True:
            text = " ".join(rng.choice(DIGITS, rng.integers(2, 5)))
            if used.setdefault(text, split) == split:
                break
        samples, voice = draw_spoken_clip(text, rng, split)
        yield samples, {"text": text, "split": split, "speaker": voice}
