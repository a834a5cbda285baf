"""Recordings that augmentation draws from: noises and impulse responses in a folder."""

from __future__ import annotations

import random
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.audio import QUANTA, decode
from uniaudio.data.sources.audio_suffixes import SUFFIXES
from uniaudio.data.sources.folder_walk import describe_suffix, walk_files
from uniaudio.errors import RowError

Wave = NDArray[np.float32]
LONGEST_FILE = 600.0  # seconds of a noise or an impulse response


@lru_cache(maxsize=64)
def find_audio_files(folder: str) -> tuple[tuple[Path, ...], Counter[str]]:
    """Return the audio files below a folder, sorted, for their order is part of what is drawn; and what is passed over.

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
    return decode(path, LONGEST_FILE, str(path)).astype(np.float32) / np.float32(QUANTA)


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
