"""Clips cut into chunks that fit an encoder's reach, and frames kept or put together again by their lengths."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from uniaudio.ragged import Ragged

CHUNK_SECONDS = 30.0  # longest chunk of encoders without a reach of their own


def list_chunk_lengths(samples: int, reach: int) -> list[int]:
    """Return the lengths of the chunks of one clip: whole reaches, then the rest; a clip of 0 has one chunk of 0."""
    whole, rest = divmod(samples, reach)
    return [reach] * whole + ([rest] if rest or not whole else [])


def cut_lengths(lengths: Tensor, reach: int) -> Tensor:
    """Return the lengths of the chunks of all clips, one after another; int64 on the CPU."""
    chunks = [chunk for samples in lengths.tolist() for chunk in list_chunk_lengths(samples, reach)]
    return torch.tensor(chunks, dtype=torch.int64)


def cut_into_chunks(audio: Ragged, reach: int) -> Ragged:
    """Cut clips longer than ``reach`` samples; the samples stay where they are, only the lengths change."""
    return audio.with_lengths(cut_lengths(audio.lengths, reach))


def cut_overlapping(
    waves: Ragged, per_chunk: int, num_frames: Callable[[int], int], stride: int, field: int
) -> Ragged:
    """Cut clips into chunks of ``per_chunk`` frames that overlap by what a frame reaches beyond its stride.

    So the chunks of a clip have as many frames together as the clip in one piece. What is too short for one frame gets
    silence behind it.

    Args:
        num_frames: of a clip of so many samples. stride: samples from frame to frame. field: samples of one frame.
    """
    step = per_chunk * stride
    begins, lengths, wanted = [], [], []
    for offset, samples in zip(waves.offsets.tolist(), waves.lengths.tolist(), strict=False):
        frames = num_frames(samples)
        for first in range(0, frames, per_chunk):
            begin = first // per_chunk * step
            last = first + per_chunk >= frames
            length = samples - begin if last else step + field - stride
            begins.append(offset + begin)
            lengths.append(length)
            wanted.append(max(length, field))
    sizes, real = torch.tensor(wanted), torch.tensor(lengths)
    index = Ragged.index_slices(torch.tensor(begins), real).to(waves.device, non_blocking=True)
    return Ragged(waves.values[index], real).extend_rows(sizes)


def keep_first(frames: Ragged, kept: Tensor) -> Ragged:
    """Keep the first ``kept[i]`` frames of every row; ``kept`` is int64 on the CPU."""
    if torch.equal(frames.lengths, kept):
        return frames
    index = Ragged.index_slices(frames.offsets[:-1], kept)
    return Ragged(frames.values[index.to(frames.device, non_blocking=True)], kept)


def convert_to_float(samples: Tensor) -> Tensor:
    """Return samples as float32 in [-1, 1): int16 is scaled, floats are taken as they are."""
    return samples.float() if samples.is_floating_point() else samples.float() / 32768.0
