"""From encoder frames to the decoder's width, at a stated rate: neighbouring frames stacked, then an MLP or one map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniaudio.model.adapters.base import GroupingAdapter, count_frames_per_token
from uniaudio.ragged import Ragged


class FrameStacker(GroupingAdapter):
    """Stacks ``k = frame_rate / rate`` neighbouring frames; a last group that is not full repeats its last frame.

    Raises:
        UserError: when the rate does not divide the frame rate.
    """

    def __init__(self, frame_rate: float, rate: float) -> None:
        super().__init__()
        self.stack = count_frames_per_token(frame_rate, rate)

    def num_tokens(self, frames: int) -> int:
        return -(-frames // self.stack)

    def group_frames(self, frames: Ragged) -> Ragged:
        tokens = frames.map_lengths(self.num_tokens)
        slots = tokens * self.stack
        within = Ragged.count_within_rows(slots)
        last = torch.repeat_interleave(frames.lengths - 1, slots)
        index = torch.minimum(within, last) + torch.repeat_interleave(frames.offsets[:-1], slots)
        stacked = frames.values[index.to(frames.device, non_blocking=True)]
        return Ragged(stacked.view(int(tokens.sum()), self.stack * frames.values.shape[1]), tokens)


class StackAdapter(FrameStacker):
    """Stacked frames, then LayerNorm and a two-layer GELU MLP."""

    kind = "stack"

    def __init__(
        self,
        encoder_dim: int,
        frame_rate: float,
        decoder_dim: int,
        rate: float = 12.5,
        hidden: int | None = None,
    ) -> None:
        super().__init__(frame_rate, rate)
        hidden = hidden or decoder_dim
        self.norm = nn.LayerNorm(self.stack * encoder_dim)
        self.up = nn.Linear(self.stack * encoder_dim, hidden)
        self.down = nn.Linear(hidden, decoder_dim)

    @property
    def last(self) -> nn.Linear:
        return self.down

    def compute_features(self, groups: Tensor) -> Tensor:
        return nn.functional.gelu(self.up(self.norm(groups)))


class LinearAdapter(FrameStacker):
    """Stacked frames through one linear map: the projector of XARES-LLM, where each frame is a token."""

    kind = "linear"

    def __init__(self, encoder_dim: int, frame_rate: float, decoder_dim: int, rate: float = 12.5) -> None:
        super().__init__(frame_rate, rate)
        self.out = nn.Linear(self.stack * encoder_dim, decoder_dim)

    @property
    def last(self) -> nn.Linear:
        return self.out
