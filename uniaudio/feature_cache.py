"""The cache of tensors that can be made again, such as frames of frozen encoders: their keys, files and writer."""

from __future__ import annotations

import hashlib
import queue
import shutil
import threading
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from uniaudio.config.path_variables import get_cache_root
from uniaudio.ragged import Ragged
from uniaudio.units import GIB

FRAMES = "frames"  # the tensor in a file
LEAST_FREE = 10 * GIB  # of the disk; below that nothing more is written
AHEAD = 4  # frames of so many micro-batches may wait to be written


def read_cached(file: Path) -> dict[str, Tensor] | None:
    """Return what a file holds, or None where there is none that can be read: it is then made again."""
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None


def write_cached(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors so that the file appears whole or not at all, whoever else writes the same.

    Raises:
        OSError: when they cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    try:
        # not by `save_file`, which lets nobody but its user read the file
        partial.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


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


class FeatureWriter:
    """Writes frames, and gives up for the rest of its life when the disk will not take them.

    Args:
        in_thread: whether a thread writes while the next step runs; it needs ``close`` at the end.
    """

    def __init__(self, in_thread: bool = True) -> None:
        self.in_thread = in_thread
        self.waiting: queue.Queue[tuple[FeatureStore, Sequence[str], Ragged] | None] = queue.Queue(AHEAD)
        self.thread: threading.Thread | None = None
        self.problem: str | None = None
        self.has_reported = False

    def put(self, store: FeatureStore, keys: Sequence[str], frames: Ragged) -> None:
        """Hand over the frames of clips; waits only where the disk is slower than the encoder.

        The thread copies them to the CPU, behind what the device has to do before: nothing waits here.
        """
        if self.problem is not None:
            return
        if not self.in_thread:
            self.write(store, keys, frames)
            return
        if self.thread is None:
            self.thread = threading.Thread(target=self.work, name="features", daemon=True)
            self.thread.start()
        self.waiting.put((store, keys, frames.with_values(frames.values.detach())))

    def work(self) -> None:
        """Write until ``close``; runs in the thread, which goes on taking when it writes no more."""
        while (given := self.waiting.get()) is not None:
            if self.problem is None:
                self.write(*given)

    def write(self, store: FeatureStore, keys: Sequence[str], frames: Ragged) -> None:
        """Write a file for each clip where there is room on the disk, or note why it cannot be done."""
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(store.folder).free
            if free < LEAST_FREE:
                self.problem = (
                    f"{store.folder} has {free / GIB:.1f} GiB left, less than {LEAST_FREE / GIB:.0f}"
                )
                return
            for key, row in zip(keys, frames.to("cpu").rows(), strict=True):
                store.write(key, row)
        except Exception as problem:  # one that only ends the thread would go unnoticed
            self.problem = f"frames could not be written to {store.folder} ({problem!r})"

    def explain_problem(self) -> str | None:
        """Return, once, why frames are not kept any more."""
        if self.problem is None or self.has_reported:
            return None
        self.has_reported = True
        return (
            f"the feature cache stores no more frames: {self.problem}; frames that are not in it are "
            "computed in every epoch"
        )

    def close(self) -> None:
        """Write what is waiting and end the thread."""
        if self.thread is not None:
            self.waiting.put(None)
            self.thread.join()
            self.thread = None


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
        known = {name: frames.to(device, non_blocking) for name, frames in self.known.items()}
        return Clips(self.values.to(device, non_blocking=non_blocking), self.lengths, self.keys, known)


def look_up_frames(audio: Ragged, stores: Sequence[FeatureStore]) -> Clips:
    """Look up clips of int16 samples, on the CPU, in the stores of several encoders."""
    keys = tuple(clip_key(clip) for clip in audio.rows())
    return Clips(audio.values, audio.lengths, keys, {store.name: store.read_all(keys) for store in stores})


def clip_key(samples: Tensor) -> str:
    """Return the name of a clip: the first half of a SHA-256 of its int16 samples ``[S]``, hexadecimal."""
    return hashlib.sha256(samples.contiguous().numpy().data).hexdigest()[:32]
