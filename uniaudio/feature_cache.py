"""Frames of frozen encoders: kept on disk under the content of encoder and clip, and brought along with the clips."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from uniaudio.config.path_variables import get_cache_root
from uniaudio.ragged import Ragged
from uniaudio.tensor_cache import read_cached, write_cached

FRAMES = "frames"  # the tensor in a file


@dataclass(frozen=True)
class FeatureStore:
    """The frames of one encoder, a file for each clip: ``$UNIAUDIO_CACHE/features/NAME/KE/KEY.safetensors``.

    A file appears whole or not at all and one that cannot be read counts as missing, so any number of processes and
    runs may read and write at the same time, and be killed meanwhile.

    Args:
        name: digest of the encoder and of the way it computes.
        dtype: what frames are rounded to on disk; None: they are kept as they are.
    """

    name: str
    dtype: torch.dtype | None = None

    @property
    def folder(self) -> Path:
        return get_cache_root() / "features" / self.name

    def locate_file(self, key: str) -> Path:
        """Return where the frames of a clip lie; in 256 folders, for some file systems are slow with large ones."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> Tensor | None:
        """Return the frames ``[A, E]`` of a clip, None where they are not known."""
        known_frames = read_cached(self.locate_file(key))
        return None if known_frames is None else known_frames[FRAMES]

    def write(self, key: str, frames: Tensor) -> None:
        """Keep the frames ``[A, E]`` of a clip.

        Raises:
            OSError: when they cannot be written.
        """
        write_cached(self.locate_file(key), {FRAMES: frames.to(self.dtype or frames.dtype)})

    def read_all(self, keys: Sequence[str]) -> Ragged:
        """Return the frames of C clips, a row without any for those that are not known."""
        rows = [self.read(key) for key in keys]
        known_frames = [row for row in rows if row is not None]
        lengths = torch.tensor([0 if row is None else len(row) for row in rows], dtype=torch.int64)
        return Ragged(torch.cat(known_frames) if known_frames else torch.zeros(0), lengths)


@dataclass(frozen=True)
class Clips(Ragged):
    """int16 samples of C clips, with what encoders said of them before.

    Args:
        keys: C digests of the samples.
        known: name of a ``FeatureStore`` to the frames ``[A, E]`` of every clip; none where they have to be computed.
    """

    keys: tuple[str, ...]
    known: Mapping[str, Ragged]

    @property
    def looked_up(self) -> tuple[int, int]:
        """How many frames of clips were known, and how many were looked up."""
        rows = [(frames.lengths > 0).sum() for frames in self.known.values()]
        return sum(int(count) for count in rows), len(self.keys) * len(rows)

    def select(self, rows: Tensor | Sequence[int]) -> Clips:
        """The given clips (indices on the CPU) in the given order, with what is known of them."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        samples = super().select(chosen)
        known = {name: frames.select(chosen) for name, frames in self.known.items()}
        return Clips(samples.values, samples.lengths, tuple(self.keys[i] for i in chosen.tolist()), known)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Clips:
        """Move samples and frames; lengths stay on the CPU."""
        known = {name: frames.to(device, non_blocking) for name, frames in self.known.items()}
        return Clips(self.values.to(device, non_blocking=non_blocking), self.lengths, self.keys, known)


def look_up_frames(audio: Ragged, stores: Sequence[FeatureStore]) -> Clips:
    """Look up clips of int16 samples, on the CPU, in the stores of several encoders."""
    keys = tuple(clip_key(clip) for clip in audio.rows())
    return Clips(audio.values, audio.lengths, keys, {store.name: store.read_all(keys) for store in stores})


def clip_key(samples: Tensor) -> str:
    """Return the name of a clip: the first half of a SHA-256 of its int16 samples ``[S]``, hexadecimal."""
    return hashlib.sha256(samples.contiguous().numpy().data).hexdigest()[:32]
