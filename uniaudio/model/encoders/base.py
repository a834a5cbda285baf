"""The contract of every audio encoder: one, fused or routed."""

from __future__ import annotations

from torch import nn

from uniaudio.ragged import Ragged
from uniaudio.types import Encoded


class AudioEncoder(nn.Module):
    """Ragged waveforms in, ragged frames out.

    Attributes:
        dim: width E of a frame. frame_rate: frames per second.
    """

    dim: int
    frame_rate: float

    def num_frames(self, samples: int) -> int:
        """Return the number of frames that a clip of ``samples`` at 16 kHz gives."""
        raise NotImplementedError

    def forward(self, audio: Ragged, layers: bool = False) -> Encoded:
        """Encode int16 or float samples; with ``layers`` also return every hidden state."""
        raise NotImplementedError
