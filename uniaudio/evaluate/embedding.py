"""One vector per clip: the mean over its real frames, never over padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from uniaudio.model.encoders.base import AudioEncoder, find_device
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

Samples = NDArray[np.int16] | NDArray[np.float32]
MAX_CLIP_SECONDS = 600.0  # of a clip that is probed, embedded or asked about


def batch_by_length(lengths: Sequence[float], most: float, batch_size: int | None = None) -> list[list[int]]:
    """Return indices in batches of similar length whose lengths add up to at most ``most`` (or hold one item).

    Args:
        batch_size: most items of a batch; None: any number.
    """
    batches: list[list[int]] = []
    room = 0.0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not batches or lengths[index] > room or len(batches[-1]) == batch_size:
            batches.append([])
            room = most
        batches[-1].append(index)
        room -= lengths[index]
    return batches


@torch.no_grad()
def encode_clips(
    encoder: AudioEncoder,
    clips: Sequence[Samples],
    batch_seconds: float = 60.0,
    layer: int | None = None,
    batch_size: int | None = None,
    pooled: bool = False,
) -> list[NDArray[np.float32]]:
    """Return the frames ``[A_i, E]`` of every clip as float32, or its mean frame ``[E]``, in the order of the clips.

    Args:
        clips: mono samples at 16 kHz, int16 or floats. batch_seconds: audio that is encoded at a time.
        layer: which of the hidden states; None: the last frames. batch_size: most clips at a time.
        pooled: return the mean frames.
    """
    was_training = encoder.training
    encoder.eval()
    device = find_device(encoder)
    results: dict[int, torch.Tensor] = {}
    lengths = [len(clip) for clip in clips]
    for batch in batch_by_length(lengths, batch_seconds * SAMPLE_RATE, batch_size):
        audio = Ragged.from_rows([torch.from_numpy(clips[i]) for i in batch]).to(device)
        encoded = encoder(audio, layers=layer is not None)
        frames = encoded.frames if layer is None else encoded.layers[layer]
        frames = frames.with_values(frames.values.float())
        results.update(zip(batch, frames.mean() if pooled else frames.rows(), strict=True))
    encoder.train(was_training)
    return [results[i].cpu().numpy() for i in range(len(clips))]


def embed_clips(
    encoder: AudioEncoder, clips: Sequence[Samples], batch_seconds: float = 60.0
) -> NDArray[np.float32]:
    """Return the mean frame of every clip: ``[C, E]`` float32, see ``encode_clips``."""
    return np.stack(encode_clips(encoder, clips, batch_seconds, pooled=True))
