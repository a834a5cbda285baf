"""From encoder frames to the decoder's width, at a stated rate."""

from __future__ import annotations

import torch
from torch import nn

from uniaudio.model.adapters.base import Adapter, count_frames_per_token
from uniaudio.ragged import Ragged


class StackAdapter(Adapter):
    """Stack ``k = frame_rate / rate`` neighbouring frames, then LayerNorm and a two-layer GELU MLP.

    Raises:
        UserError: when the rate does not divide the frame rate.
    """

    def __init__(
        self,
        encoder_dim: int,
        frame_rate: float,
        decoder_dim: int,
        rate: float = 12.5,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        self.stack = count_frames_per_token(frame_rate, rate)
        hidden = hidden or decoder_dim
        self.norm = nn.LayerNorm(self.stack * encoder_dim)
        self.up = nn.Linear(self.stack * encoder_dim, hidden)
        self.down = nn.Linear(hidden, decoder_dim)

    def num_tokens(self, frames: int) -> int:
        """Return the audio tokens of a clip of ``frames`` encoder frames."""
        return -(-frames // self.stack)

    def forward(self, frames: Ragged) -> Ragged:
        """Map frames ``[A, E]`` to audio tokens ``[N, D]``; a last group that is not full repeats its last frame."""
        tokens = torch.tensor([self.num_tokens(n) for n in frames.lengths.tolist()], dtype=torch.int64)
        slots = tokens * self.stack
        within = Ragged.count_within_rows(slots)
        last = torch.repeat_interleave(frames.lengths - 1, slots)
        index = torch.minimum(within, last) + torch.repeat_interleave(frames.offsets[:-1], slots)
        stacked = frames.values[index.to(frames.device, non_blocking=True)]
        stacked = stacked.view(int(tokens.sum()), self.stack * frames.values.shape[1])
        return Ragged(self.down(nn.functional.gelu(self.up(self.norm(stacked)))), tokens)
