"""Streams of different frame rates brought to one rate, on ragged frames."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE


def count_frames_at(rate: float, samples: int) -> int:
    """Return the frames of a clip at a rate: whole frames that cover all its samples, at least one."""
    exact = Fraction(rate).limit_denominator(10_000)
    return max(1, -(-samples * exact.numerator // (SAMPLE_RATE * exact.denominator)))


def align(frames: Ragged, rate: float, to_rate: float, lengths: Tensor, method: str = "area") -> Ragged:
    """Resample every clip's frames from ``rate`` to ``to_rate`` and to exactly ``lengths[c]`` frames.

    Frame ``j`` stands for the time from ``j / rate`` to ``(j + 1) / rate``. A clip's last frame is held as long as it
    is needed (encoders differ by a frame at the end), and frames beyond the last wanted one are dropped.

    Args:
        frames: ``[A, E]``. lengths: ``[C]`` int64 on the CPU.
        method: ``area``: a new frame is the mean of the old ones over its time, each weighted with the time they share
            (50 to 25 Hz: the mean of two; 12.5 to 25 Hz: each twice). ``linear``: interpolation between the
            middles of the two nearest old frames.
    """
    if rate == to_rate and torch.equal(frames.lengths, lengths):
        return frames
    if method == "linear":
        return interpolate_linearly(frames, rate, to_rate, lengths)
    ratio = Fraction(rate).limit_denominator(10_000) / Fraction(to_rate).limit_denominator(10_000)
    step = Ragged.count_within_rows(lengths)
    # In units of 1 / denominator of an old frame, so that the borders are whole numbers and exact.
    begin = step * ratio.numerator
    end = begin + ratio.numerator
    first = torch.div(begin, ratio.denominator, rounding_mode="floor")
    widest = 1 + -(-ratio.numerator // ratio.denominator)  # old frames that a new one can touch
    result: Tensor | None = None
    for offset in range(widest):
        left = (first + offset) * ratio.denominator
        shared = (torch.minimum(end, left + ratio.denominator) - torch.maximum(begin, left)).clamp(min=0)
        if not shared.any():
            continue
        weight = (shared.double() / ratio.numerator).to(frames.device, frames.values.dtype)
        part = frames.values[clip_index(first + offset, frames, lengths)] * weight[:, None]
        result = part if result is None else result + part
    if result is None:
        result = frames.values[:0]
    return Ragged(result, lengths)


def interpolate_linearly(frames: Ragged, rate: float, to_rate: float, lengths: Tensor) -> Ragged:
    """Interpolate between the middles of old frames; before the first and after the last middle the value is held."""
    step = Ragged.count_within_rows(lengths)
    return interpolate_at(frames, (step.double() + 0.5) * (rate / to_rate) - 0.5, lengths)


def interpolate_at(frames: Ragged, places: Tensor, lengths: Tensor) -> Ragged:
    """Return frames between frames; before the first and after the last one of a clip the value is held.

    Args:
        places: ``[N]`` float64 on the CPU, in frames from the middle of a clip's first one, ``lengths[c]`` for each.
    """
    last = torch.repeat_interleave(frames.lengths - 1, lengths).clamp(min=0)
    places = torch.minimum(places.clamp(min=0), last.double())
    low = places.floor()
    share = (places - low).to(frames.device, frames.values.dtype)[:, None]
    low = low.to(torch.int64)
    left, right = (frames.values[clip_index(index, frames, lengths)] for index in (low, low + 1))
    return Ragged(left + (right - left) * share, lengths)


def clip_index(index: Tensor, frames: Ragged, lengths: Tensor) -> Tensor:
    """Turn indices within clips into rows of ``frames.values``, the last frame of a clip standing for later ones."""
    last = torch.repeat_interleave(frames.lengths - 1, lengths)
    rows = torch.minimum(index, last) + torch.repeat_interleave(frames.offsets[:-1], lengths)
    return rows.to(frames.device, non_blocking=True)
