"""The mean of neighbouring frames, then a small MLP."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniaudio.model.adapters.base import GroupingAdapter, count_frames_per_token
from uniaudio.model.encoders.chunking import list_chunk_lengths
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
        """Return ``ceil(frames / k)``."""
        return -(-frames // self.group)

    @property
    def last(self) -> nn.Linear:
        """The second layer of the MLP."""
        return self.down

    def group_frames(self, frames: Ragged) -> Ragged:
        """Average frames ``[A, E]`` to ``[N, E]``."""
        groups = [size for n in frames.lengths.tolist() for size in list_chunk_lengths(n, self.group)]
        means = frames.with_lengths(torch.tensor(groups, dtype=torch.int64)).mean()
        tokens = torch.tensor([self.num_tokens(n) for n in frames.lengths.tolist()], dtype=torch.int64)
        return Ragged(means, tokens)

    def compute_features(self, groups: Tensor) -> Tensor:
        """Return what the last layer reads, ``[N, hidden]``."""
        return nn.functional.gelu(self.up(self.norm(groups)))
