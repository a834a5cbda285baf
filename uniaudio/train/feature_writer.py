"""Frozen encoders of a stage that keep their frames on disk, and the thread that writes them."""

from __future__ import annotations

import hashlib
import queue
import shutil
import threading
from collections.abc import Sequence
from typing import Any

import torch

from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError
from uniaudio.feature_cache import FeatureStore
from uniaudio.model.cached_encoder import attach_frame_cache
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.ragged import Ragged
from uniaudio.tensor_cache import hash_model
from uniaudio.train.trainable import list_named_encoders
from uniaudio.units import GIB

LEAST_FREE = 10 * GIB  # of the disk; below that nothing more is written
AHEAD = 4  # frames of so many micro-batches may wait to be written


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
            self.try_to_write(store, keys, frames)
            return
        if self.thread is None:
            self.thread = threading.Thread(target=self.work, name="features", daemon=True)
            self.thread.start()
        self.waiting.put((store, keys, frames.with_values(frames.values.detach())))

    def work(self) -> None:
        """Write until ``close``; runs in the thread, which goes on taking when it writes no more."""
        while (given := self.waiting.get()) is not None:
            if self.problem is None:
                self.try_to_write(*given)

    def try_to_write(self, store: FeatureStore, keys: Sequence[str], frames: Ragged) -> None:
        """Write, or note why it cannot be done."""
        try:
            self.write(store, keys, frames)
        # one that only ends the thread would be heard by nobody
        except Exception as problem:
            self.problem = f"frames could not be written to {store.folder} ({problem!r})"

    def write(self, store: FeatureStore, keys: Sequence[str], frames: Ragged) -> None:
        """Write a file for each clip where there is room on the disk."""
        store.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(store.folder).free
        if free < LEAST_FREE:
            self.problem = f"{store.folder} has {free / GIB:.1f} GiB left, less than {LEAST_FREE / GIB:.0f}"
            return
        rows = frames.to("cpu").rows()
        for key, row in zip(keys, rows, strict=True):
            store.write(key, row)

    def explain_problem(self) -> str | None:
        """Return, once, why frames are not kept any more."""
        if self.problem is None or self.has_reported:
            return None
        self.has_reported = True
        return f"the feature cache takes no more frames: {self.problem}; what is not in it is computed in every epoch"

    def close(self) -> None:
        """Write what is waiting and end the thread."""
        if self.thread is not None:
            self.waiting.put(None)
            self.thread.join()
            self.thread = None


def find_cached_parts(encoder: AudioEncoder, config: RunConfig) -> dict[str, AudioEncoder]:
    """Return the encoders whose frames the config wants kept, by name."""
    parts = list_named_encoders(config, encoder)
    return {name: parts[name] for name, settings in config.encoders.items() if settings.cache}


def make_feature_stores(
    encoder: AudioEncoder, config: RunConfig, precision: torch.dtype | None, device: torch.device
) -> dict[str, FeatureStore]:
    """Return where the frames of the encoders lie that the stage does not train, by name; whole weights are needed.

    Precision and kind of device are part of the name, for they change the last digits, and so is the revision: foreign
    code may change with it.

    Raises:
        UserError: for an encoder that hears a clip differently from question to question.
    """
    stores = {}
    for name, part in find_cached_parts(encoder, config).items():
        if getattr(part, "takes_prompts", False):
            raise UserError(
                f"encoders.{name}.cache: this encoder reads the question, so a clip has no frames of its own; "
                "leave `cache` out"
            )
        if any(parameter.requires_grad for parameter in part.parameters()):
            continue
        settings = config.encoders[name]
        dtype = torch.bfloat16 if settings.cache == "bfloat16" else None
        content = f"{hash_model(part)}\n{settings.revision}\n{precision}\n{device.type}\n{dtype}"
        stores[name] = FeatureStore(hashlib.sha256(content.encode()).hexdigest()[:32], dtype)
    return stores


def keep_features(
    models: Sequence[Any],
    config: RunConfig,
    precision: torch.dtype | None,
    device: torch.device,
    in_training: bool = True,
) -> FeatureWriter | None:
    """Let the frozen encoders of a stage recall their frames.

    Args:
        models: with an ``encoder``; the first one trains, others are copies of it as the stage began.
        in_training: whether clips bring known frames along from the workers of a loader, and a thread writes new ones.

    Returns:
        What writes new frames, None where no encoder keeps any.
    """
    stores = make_feature_stores(models[0].encoder, config, precision, device) if has_cache(config) else {}
    if not in_training:  # where frames are not rounded, it makes no difference to anybody
        stores = {name: store for name, store in stores.items() if store.dtype is None}
    if not stores:
        return None
    writer = FeatureWriter(in_thread=in_training)
    for model in models:
        parts = find_cached_parts(model.encoder, config)
        for name, store in stores.items():
            attach_frame_cache(parts[name], store, writer.put, looks_up=not in_training)
    return writer


def has_cache(config: RunConfig) -> bool:
    """Return whether the frames of any encoder are to be kept."""
    return any(settings.cache for settings in config.encoders.values())
