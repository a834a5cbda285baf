"""Clips cut into chunks that fit an encoder's reach, and frames kept or put together again by their lengths."""

from __future__ import annotations

import torch
from torch import Tensor

from uniaudio.ragged import Ragged


def list_chunk_lengths(samples: int, reach: int) -> list[int]:
    """Return the lengths of the chunks of one clip: whole reaches, then the rest; a clip of 0 has one chunk of 0."""
    whole, rest = divmod(samples, reach)
    return [reach] * whole + ([rest] if rest or not whole else [])


def cut_into_chunks(audio: Ragged, reach: int) -> Ragged:
    """Cut clips longer than ``reach`` samples; the samples stay where they are, only the lengths change."""
    lengths = [chunk for samples in audio.lengths.tolist() for chunk in list_chunk_lengths(samples, reach)]
    return audio.with_lengths(torch.tensor(lengths, dtype=torch.int64))


def keep_first(frames: Ragged, kept: Tensor) -> Ragged:
    """Keep the first ``kept[i]`` frames of every row; ``kept`` is int64 on the CPU."""
    if torch.equal(frames.lengths, kept):
        return frames
    index = Ragged.index_slices(frames.offsets[:-1], kept)
    return Ragged(frames.values[index.to(frames.device, non_blocking=True)], kept)


def append_silence(clips: Ragged, wanted: Tensor) -> Ragged:
    """Return clips with zeros behind them, each ``wanted[i]`` samples long; ``wanted`` is int64 on the CPU."""
    if torch.equal(clips.lengths, wanted):
        return clips
    padded = clips.values.new_zeros(int(wanted.sum()))
    target = Ragged.index_slices(Ragged.find_row_starts(wanted), clips.lengths)
    padded[target.to(padded.device, non_blocking=True)] = clips.values
    return Ragged(padded, wanted)


def convert_to_float(samples: Tensor) -> Tensor:
    """Return samples as float32 in [-1, 1): int16 is scaled, floats are taken as they are."""
    return samples.float() if samples.is_floating_point() else samples.float() / 32768.0
