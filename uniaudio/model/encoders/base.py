"""The contract of every audio encoder: one, fused or routed."""

from __future__ import annotations

from torch import Tensor, nn

from uniaudio.ragged import Ragged
from uniaudio.types import Encoded


class AudioEncoder(nn.Module):
    """Ragged waveforms in, ragged frames out.

    Attributes:
        dim: width E of a frame. frame_rate: frames per second. takes_masks: whether it has a spectrogram to mask.
    """

    dim: int
    frame_rate: float
    takes_masks: bool = False

    def num_frames(self, samples: int) -> int:
        """Return the number of frames that a clip of ``samples`` at 16 kHz gives."""
        raise NotImplementedError

    def forward(self, audio: Ragged, layers: bool = False, masks: Tensor | None = None) -> Encoded:
        """Encode int16 or float samples; with ``layers`` also return every hidden state.

        Args:
            masks: bands of the spectrogram to hide, see ``spec_augment.mask_mel``; for encoders that take them.
        """
        raise NotImplementedError
