"""What the miniature variants of run configs stand on: two small sets of made-up sounds and tiny checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from uniaudio.config.path_variables import CACHE_VARIABLE, get_miniature_root
from uniaudio.errors import convert_to_user_error
from uniaudio.tiny.checkpoints import MAKERS, save_miniature_whisper, save_model
from uniaudio.types import SAMPLE_RATE

NOTES = (60, 64, 67, 72)  # MIDI numbers
NOISES = ("hiss", "rumble", "clicks")
TRAINED, TESTED = 48, 16  # clips of each set


def ensure_parts() -> Path:
    """Write the parts into the cache unless they are there, and return their folder.

    Raises:
        UserError: when the cache cannot be written.
    """
    root = get_miniature_root()
    if root.is_dir():
        return root
    unfinished = root.with_name(f".{root.name}-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    where = f"{CACHE_VARIABLE}: {root} cannot be written"
    with convert_to_user_error(where, f"give {CACHE_VARIABLE} another folder"):
        write_parts(unfinished)
    try:
        unfinished.rename(root)
    except OSError:  # another process was faster
        shutil.rmtree(unfinished, ignore_errors=True)
    return root


def write_parts(folder: Path) -> None:
    """Write the sets and checkpoints into a new folder."""
    write_clips(folder / "notes", [{"midi": NOTES[i % len(NOTES)]} for i in range(TRAINED + TESTED)])
    write_clips(folder / "noises", [{"label": NOISES[i % len(NOISES)]} for i in range(TRAINED + TESTED)])
    save_miniature_whisper(folder / "whisper", d_model=64, layers=4)
    for number in range(3):
        save_miniature_whisper(folder / f"whisper_{number}", d_model=32, layers=2, seed=number + 1)
    for kind, make in MAKERS.items():
        save_model(make, folder / kind)


def write_clips(folder: Path, facts: list[dict[str, object]]) -> None:
    """Write clips of half a second to one and a half, a function of their facts and numbers, and their manifest."""
    folder.mkdir(parents=True)
    rows = []
    for number, fact in enumerate(facts):
        wave = clip(fact, np.random.default_rng([number, len(fact), sum(map(ord, str(fact)))]))
        soundfile.write(folder / f"{number:03d}.wav", wave, SAMPLE_RATE)
        split = "train" if number < TRAINED else "test"
        rows.append({"audio": f"{number:03d}.wav", **fact, "split": split})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def clip(fact: dict[str, object], rng: np.random.Generator) -> NDArray[np.int16]:
    """Return a note with overtones, or a noise of a kind."""
    samples = round(SAMPLE_RATE * rng.uniform(0.5, 1.5))
    time = np.arange(samples) / SAMPLE_RATE
    white = rng.standard_normal(samples)
    if "midi" in fact:
        hertz = 440.0 * 2 ** ((int(str(fact["midi"])) - 69) / 12)
        wave = sum(np.sin(2 * np.pi * k * hertz * time) / k for k in (1, 2, 3)) + 0.02 * white
    elif fact["label"] == "hiss":
        wave = np.diff(white, prepend=0.0)
    elif fact["label"] == "rumble":
        wave = np.convolve(white, np.ones(200) / 14, mode="same")
    else:
        wave = white * (np.arange(samples) % 1600 < 40)
    return (wave / np.abs(wave).max() * rng.uniform(0.2, 0.8) * 32767).astype(np.int16)
