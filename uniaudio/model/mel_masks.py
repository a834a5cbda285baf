"""SpecAugment on packed log-mels: bands of time and of frequency that the encoder does not see."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from uniaudio.ragged import Ragged
from uniaudio.types import PER_MILLE

TIME, FREQUENCY = 0, 1  # the axis of a mask


def mask_mel(mel: Ragged, chunks_of_clip: Sequence[int], masks: Tensor) -> Ragged:
    """Fill bands of a spectrogram with the mean of its chunk (Park et al. 2019, "SpecAugment", without time warping).

    Which bands is decided where the examples are made, from each example's own generator: a clip is masked in the same
    way in any batch, and again after a resume. Nothing here is random, and nothing waits for the device.

    Args:
        mel: ``[F, M]``, one row of the ragged for each chunk; whole but for the last one of a clip.
        chunks_of_clip: chunks of every clip, in order.
        masks: ``[R, 4]`` int64 on the CPU: clip, axis, begin, width; in mel frames of 10 ms along time, in thousandths
            of the mel axis along frequency.

    Returns:
        A new ragged; ``mel`` stays as it is.
    """
    values = mel.values.clone()
    offsets = mel.offsets.tolist()
    first_chunk = [0]
    for count in chunks_of_clip:
        first_chunk.append(first_chunk[-1] + count)
    bins = values.shape[1]
    for clip, axis, begin, width in masks.tolist():
        for chunk in range(first_chunk[clip], first_chunk[clip + 1]):
            rows = slice(offsets[chunk], offsets[chunk + 1])
            mean = mel.values[rows].mean()
            if axis == FREQUENCY:
                low, high = (round(edge * bins / PER_MILLE) for edge in (begin, begin + width))
                values[rows, low:high] = mean
                continue
            start = offsets[first_chunk[clip]] + begin
            values[max(start, rows.start) : min(start + width, rows.stop)] = mean
    return Ragged(values, mel.lengths)
