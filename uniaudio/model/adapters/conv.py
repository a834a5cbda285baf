"""Strided convolutions over every clip's frames."""

from __future__ import annotations

import torch
from torch import nn

from uniaudio.errors import UserError
from uniaudio.model.adapters.base import Adapter, count_frames_per_token
from uniaudio.ragged import Ragged


class ConvAdapter(Adapter):
    """LayerNorm, one convolution of stride 2 with GELU for each halving of the rate, then a linear map.

    Zeros stand before and after a clip, so it gives ``ceil(F / 2)`` frames each time.

    Args:
        kernel: an odd number of frames.

    Raises:
        UserError: when the frame rate is not the rate times a power of two, or the kernel is even.
    """

    kind = "conv"

    def __init__(
        self,
        encoder_dim: int,
        frame_rate: float,
        decoder_dim: int,
        rate: float = 12.5,
        hidden: int | None = None,
        kernel: int = 5,
    ) -> None:
        super().__init__()
        times = count_frames_per_token(frame_rate, rate)
        if times & (times - 1):
            raise UserError(
                f"adapter.rate: {frame_rate:g} frames per second are {times} times {rate:g}, but "
                "each convolution halves the rate; use a rate for which that factor is a power of "
                "two"
            )
        if kernel % 2 == 0:
            raise UserError(f"adapter.kernel: {kernel} has no centre; use an odd number")
        hidden = hidden or encoder_dim
        self.halvings = times.bit_length() - 1
        widths = [encoder_dim] + [hidden] * self.halvings
        self.norm = nn.LayerNorm(encoder_dim)
        self.convolve = nn.ModuleList(nn.Conv1d(width, hidden, kernel, stride=2) for width in widths[:-1])
        self.out = nn.Linear(widths[-1], decoder_dim)

    def num_tokens(self, frames: int) -> int:
        """Return ``ceil(frames / 2)``, once for every convolution."""
        return -(-frames // 2**self.halvings)

    def forward(self, frames: Ragged) -> Ragged:
        hidden = frames.with_values(self.norm(frames.values))
        for convolution in self.convolve:
            hidden = convolve_rows(hidden, convolution)
            hidden = hidden.with_values(nn.functional.gelu(hidden.values))
        return hidden.with_values(self.out(hidden.values))


def convolve_rows(frames: Ragged, convolution: nn.Module) -> Ragged:
    """Convolve all clips in one buffer, each on the stride and with zeros around it."""
    assert isinstance(convolution, nn.Conv1d)
    reach = convolution.kernel_size[0] // 2
    sizes = -(-(frames.lengths + 2 * reach) // 2) * 2
    starts = Ragged.find_row_starts(sizes)
    lengths = -(-frames.lengths // 2)
    place = Ragged.index_slices(starts + reach, frames.lengths)
    total = int(sizes.sum()) + 2 * reach + 1  # room for the last window
    buffer = frames.values.new_zeros(total, frames.values.shape[1])
    buffer = buffer.index_copy(0, place.to(frames.device, non_blocking=True), frames.values)
    hidden = convolution(buffer.t()[None])[0].t()
    rows = Ragged.index_slices(torch.div(starts, 2, rounding_mode="floor"), lengths)
    return Ragged(hidden[rows.to(frames.device, non_blocking=True)], lengths)
