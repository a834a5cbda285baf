"""The contract of every adapter, and the one way in which rates are divided."""

from __future__ import annotations

from torch import Tensor, nn

from uniaudio.errors import UserError
from uniaudio.model.init_args import InitArgsModule
from uniaudio.ragged import Ragged


class Adapter(InitArgsModule):
    """Ragged frames ``[A, E]`` in, ragged audio tokens ``[N, D]`` out; a clip's tokens depend on no other clip.

    Attributes:
        encoder_layers: hidden states of the encoder that it reads beside the frames, as a second argument.
        decoder_layers: layers of the decoder behind which its features are added; then ``forward`` returns wide rows,
            see ``DepthInjection``.
        kind: the ``adapter.kind`` of a config that makes it; empty for what is around another adapter.
    """

    kind: str = ""
    encoder_layers: tuple[int, ...] = ()
    decoder_layers: tuple[int, ...] = ()

    @property
    def inner(self) -> Adapter:
        """The adapter that makes audio tokens of frames, without what is around it."""
        return self

    def num_tokens(self, frames: int) -> int:
        """Return the audio tokens of a clip of ``frames`` encoder frames, at least one."""
        raise NotImplementedError

    def forward(self, frames: Ragged) -> Ragged:
        """Map frames ``[A, E]`` to audio tokens ``[N, D]``."""
        raise NotImplementedError


class GroupingAdapter(Adapter):
    """Groups of neighbouring frames, each of which becomes one token on its own; the last layer is a linear map.

    One with a ``norm`` begins with it.
    """

    @property
    def last(self) -> nn.Linear:
        """The layer that makes tokens ``[N, D]`` of features."""
        raise NotImplementedError

    def group_frames(self, frames: Ragged) -> Ragged:
        """Turn frames ``[A, E]`` into groups ``[N, G]``."""
        raise NotImplementedError

    def compute_features(self, groups: Tensor) -> Tensor:
        """Return what the last layer reads, ``[N, hidden]``."""
        return groups

    def forward(self, frames: Ragged) -> Ragged:
        groups = self.group_frames(frames)
        return groups.with_values(self.last(self.compute_features(groups.values)))


def count_frames_per_token(frame_rate: float, rate: float) -> int:
    """Return how many frames make one token.

    Raises:
        UserError: when the rate does not divide the frame rate.
    """
    frames = round(frame_rate / rate)
    if frames < 1 or abs(frames * rate - frame_rate) > 1e-6:
        raise UserError(
            f"adapter.rate: {rate:g} does not divide the encoder's {frame_rate:g} frames per "
            f"second; use {frame_rate:g} divided by a whole number"
        )
    return frames
