"""The contract of every adapter, and the one way in which rates are divided."""

from __future__ import annotations

from uniaudio.errors import UserError
from uniaudio.model.init_args import InitArgsModule
from uniaudio.ragged import Ragged


class Adapter(InitArgsModule):
    """Ragged frames ``[A, E]`` in, ragged audio tokens ``[N, D]`` out; a clip's tokens depend on no other clip."""

    def num_tokens(self, frames: int) -> int:
        """Return the audio tokens of a clip of ``frames`` encoder frames, at least one."""
        raise NotImplementedError

    def forward(self, frames: Ragged) -> Ragged:
        """Map frames to audio tokens."""
        raise NotImplementedError


def count_frames_per_token(frame_rate: float, rate: float) -> int:
    """Return how many frames make one token.

    Raises:
        UserError: when the rate does not divide the frame rate.
    """
    frames = round(frame_rate / rate)
    if frames < 1 or abs(frames * rate - frame_rate) > 1e-6:
        raise UserError(
            f"adapter.rate: {rate:g} does not divide the encoder's {frame_rate:g} frames per second; "
            f"take {frame_rate:g} divided by a whole number"
        )
    return frames
