"""Waveforms as people have them, in the one form that an exported encoder reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uniaudio.ragged import Ragged

CHANNELS = 8  # a batch of many rows that are no longer than this is one clip, written [samples, channels]
LOUDEST = 256.0  # floats beyond it are no waveform in [-1, 1], of normalized samples neither
MONO = "mix the channels of a clip into one first, for example with waveform.mean(0)"


def pack_waveforms(
    waveforms: Any,
    attention_mask: Any = None,
    lengths: Any = None,
    device: torch.device | str = "cpu",
) -> Ragged:
    """Return clips side by side without padding, int16 or float32.

    Args:
        waveforms: padded ``[B, S]``, one clip ``[S]``, or a list of clips of any lengths; tensors, arrays or lists of
            numbers at 16 kHz, int16 or float in [-1, 1]; padding comes after a clip.
        attention_mask: ``[B, S]``, 1 on real samples. lengths: ``[B]`` real samples, instead of a mask. With neither,
            all samples are real.
        device: for what is no tensor yet.

    Raises:
        ValueError: for several channels, other dtypes, int16 values written as floats, an empty clip, a mask with
            padding before a clip or of another shape.
    """
    if waveforms is None:
        raise ValueError("input_values: give waveforms at 16 kHz, [clips, samples]")
    if isinstance(waveforms, list | tuple) and not is_clip_of_numbers(waveforms):
        rows = [drop_only_channel(convert_samples(to_tensor(row, device))) for row in waveforms]
        if wrong := [row for row in rows if row.dim() != 1]:
            raise ValueError(f"input_values: a clip of the list has the shape {list(wrong[0].shape)}; {MONO}")
        if len({row.dtype for row in rows}) > 1:
            raise ValueError("input_values: the list mixes int16 and float clips; give one dtype")
        if attention_mask is None and lengths is None:
            return require_samples(rows)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    else:
        padded = convert_samples(to_tensor(waveforms, device))
    padded = padded[None] if padded.dim() == 1 else padded
    if padded.dim() != 2 or (padded.shape[1] <= CHANNELS < len(padded)):
        raise ValueError(
            f"input_values: the shape {list(padded.shape)} is not [clips, samples]; give one channel: {MONO}"
        )
    return Ragged.from_padded(padded, count_samples(padded, attention_mask, lengths))


def is_clip_of_numbers(values: Sequence[Any]) -> bool:
    """Return whether a list is one clip, written as numbers: of Python, of numpy, or tensors of one number each."""
    first = values[0] if len(values) else None
    return isinstance(first, Real) or (isinstance(first, Tensor) and first.dim() == 0)


def to_tensor(values: Any, device: torch.device | str, name: str = "input_values") -> Tensor:
    """Return a tensor as it is, and arrays and lists of numbers as one.

    Args:
        name: of the argument, for errors.

    Raises:
        ValueError: for other objects.
    """
    if isinstance(values, Tensor):
        return values
    if isinstance(values, Mapping):
        raise ValueError(
            f"{name}: give the waveform itself, not a mapping with {', '.join(map(str, values))}"
        )
    try:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)
    except (TypeError, ValueError) as problem:
        raise ValueError(f"{name}: give tensors, arrays or lists of numbers ({problem})") from problem


def convert_samples(samples: Tensor, name: str = "input_values") -> Tensor:
    """Return samples as int16 or float32.

    Args:
        name: of the argument, for errors.

    Raises:
        ValueError: for other dtypes, and for floats that cannot lie in [-1, 1]; on the CPU, where looking is free.
    """
    if samples.is_floating_point():
        loudest = (
            float(samples.detach().abs().max()) if samples.numel() and samples.device.type == "cpu" else 0
        )
        if loudest > LOUDEST:
            raise ValueError(
                f"{name}: the waveform reaches {loudest:g}; floats must be in [-1, 1]: divide by "
                "32768, or give int16"
            )
        return samples.float()
    if samples.dtype != torch.int16:
        kind = str(samples.dtype).removeprefix("torch.")
        raise ValueError(f"{name}: samples must be int16, or float in [-1, 1]; found {kind}")
    return samples


def drop_only_channel(samples: Tensor) -> Tensor:
    """Return ``[1, S]``, a clip as files with one channel are read by others, as ``[S]``; all else as it is."""
    return samples[0] if samples.dim() == 2 and len(samples) == 1 else samples


def require_samples(rows: Sequence[Tensor]) -> Ragged:
    """Return clips side by side.

    Raises:
        ValueError: when there is none, or one of them is empty.
    """
    if not rows or not min(len(row) for row in rows):
        raise ValueError("input_values: there is no clip, or a clip has no samples")
    return Ragged.from_rows(rows)


def count_samples(padded: Tensor, attention_mask: Any, lengths: Any) -> Tensor:
    """Return the number of real samples of every clip of ``[B, S]``, as ``[B]`` int64 on the CPU.

    Raises:
        ValueError: when mask or lengths have another shape, lengths are no whole numbers, real samples come after
            padding, or a clip has none.
    """
    clips, samples = padded.shape
    if lengths is not None:
        given = torch.as_tensor(lengths)
        if given.is_floating_point() and bool(((given != given.round()) | (given == 1)).any()):
            raise ValueError("lengths: give whole numbers of samples, not fractions of the longest clip")
        counts = given.to("cpu", torch.int64)
        if counts.shape != (clips,):
            raise ValueError(
                f"lengths: give one number for each of the {clips} clips, not {list(counts.shape)}"
            )
    elif attention_mask is None:
        counts = torch.full((clips,), samples, dtype=torch.int64)
    else:
        real = torch.as_tensor(attention_mask).bool()
        real = real[None] if real.dim() == 1 else real
        if real.shape != padded.shape:
            raise ValueError(
                f"attention_mask: the shape is {list(real.shape)}, and that of input_values {list(padded.shape)}"
            )
        if (real[:, 1:] & ~real[:, :-1]).any():
            raise ValueError("attention_mask: padding must come after the clip, not before it")
        counts = real.sum(1).cpu()
    if not clips or int(counts.min()) < 1 or int(counts.max()) > samples:
        raise ValueError(f"clips have 1 to {samples} samples, found {counts.tolist()}")
    return counts
