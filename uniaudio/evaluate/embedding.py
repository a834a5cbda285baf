"""One vector per clip: the mean over its real frames, never over padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

MAX_CLIP_SECONDS = 600.0  # of a clip that is probed, embedded or asked about


def batch_by_length(lengths: Sequence[float], most: float) -> list[list[int]]:
    """Return indices in batches of similar length whose lengths add up to at most ``most`` (or hold one item)."""
    batches: list[list[int]] = []
    room = 0.0
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if not batches or lengths[index] > room:
            batches.append([])
            room = most
        batches[-1].append(index)
        room -= lengths[index]
    return batches


@torch.no_grad()
def encode_clips(
    encoder: AudioEncoder, clips: Sequence[NDArray[np.int16]], batch_seconds: float = 60.0
) -> list[NDArray[np.float32]]:
    """Return the frames ``[A_i, E]`` of every clip, in the order of the clips."""
    rows = encode_in_batches(encoder, clips, batch_seconds, lambda frames: frames.rows())
    return [frames.cpu().numpy() for frames in rows]


@torch.no_grad()
def embed_clips(
    encoder: AudioEncoder, clips: Sequence[NDArray[np.int16]], batch_seconds: float = 60.0
) -> NDArray[np.float32]:
    """Return the mean frame of every clip: ``[C, E]`` float32, in the order of the clips.

    Args:
        clips: int16 mono samples at 16 kHz. batch_seconds: audio that is encoded at a time.
    """
    vectors = encode_in_batches(encoder, clips, batch_seconds, lambda frames: tuple(frames.mean()))
    return torch.stack(vectors).cpu().numpy()


def encode_in_batches(
    encoder: AudioEncoder,
    clips: Sequence[NDArray[np.int16]],
    batch_seconds: float,
    reduce: Callable[[Ragged], tuple[torch.Tensor, ...]],
) -> list[torch.Tensor]:
    """Encode in packed batches of similar length and put the results back in order."""
    was_training = encoder.training
    encoder.eval()
    device = next(encoder.parameters()).device
    results: dict[int, torch.Tensor] = {}
    for batch in batch_by_length([len(clip) for clip in clips], batch_seconds * SAMPLE_RATE):
        audio = Ragged.from_rows([torch.from_numpy(clips[i]) for i in batch]).to(device)
        frames = encoder(audio).frames
        results.update(zip(batch, reduce(frames.with_values(frames.values.float())), strict=True))
    encoder.train(was_training)
    return [results[i] for i in range(len(clips))]
