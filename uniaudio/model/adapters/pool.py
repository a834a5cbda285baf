"""The mean of neighbouring frames, then a small MLP."""

from __future__ import annotations

from torch import Tensor, nn

from uniaudio.model.adapters.base import GroupingAdapter, count_frames_per_token
from uniaudio.model.encoders.chunking import cut_into_chunks
from uniaudio.ragged import Ragged


class PoolAdapter(GroupingAdapter):
    """Average ``k = frame_rate / rate`` neighbouring frames (the last group has what is there), LayerNorm, GELU MLP.

    Raises:
        UserError: when the rate does not divide the frame rate.
    """

    kind = "pool"

    def __init__(
        self,
        encoder_dim: int,
        frame_rate: float,
        decoder_dim: int,
        rate: float = 12.5,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.group = count_frames_per_token(frame_rate, rate)
        hidden = hidden or decoder_dim
        self.norm = nn.LayerNorm(encoder_dim)
        self.up = nn.Linear(encoder_dim, hidden)
        self.down = nn.Linear(hidden, decoder_dim)

    def num_tokens(self, frames: int) -> int:
        return -(-frames // self.group)

    @property
    def last(self) -> nn.Linear:
        return self.down

    def group_frames(self, frames: Ragged) -> Ragged:
        means = cut_into_chunks(frames, self.group).mean()
        return Ragged(means, frames.map_lengths(self.num_tokens))

    def compute_features(self, groups: Tensor) -> Tensor:
        return nn.functional.gelu(self.up(self.norm(groups)))
