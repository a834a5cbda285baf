"""From encoder frames to the decoder's width, at a stated rate: neighbouring frames stacked, then an MLP or one map."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniaudio.model.adapters.base import Adapter, count_frames_per_token
from uniaudio.ragged import Ragged


class FrameStacker(Adapter):
    """Stacks ``k = frame_rate / rate`` neighbouring frames; a last group that is not full repeats its last frame.

    Raises:
        UserError: when the rate does not divide the frame rate.
    """

    def __init__(self, frame_rate: float, rate: float) -> None:
        super().__init__()
        self.stack = count_frames_per_token(frame_rate, rate)

    def num_tokens(self, frames: int) -> int:
        """Return the audio tokens of a clip of ``frames`` encoder frames."""
        return -(-frames // self.stack)

    def forward(self, frames: Ragged) -> Ragged:
        """Map frames ``[A, E]`` to audio tokens ``[N, D]``."""
        tokens = torch.tensor([self.num_tokens(n) for n in frames.lengths.tolist()], dtype=torch.int64)
        slots = tokens * self.stack
        within = Ragged.count_within_rows(slots)
        last = torch.repeat_interleave(frames.lengths - 1, slots)
        index = torch.minimum(within, last) + torch.repeat_interleave(frames.offsets[:-1], slots)
        stacked = frames.values[index.to(frames.device, non_blocking=True)]
        return Ragged(
            self.project(stacked.view(int(tokens.sum()), self.stack * frames.values.shape[1])), tokens
        )

    def project(self, stacked: Tensor) -> Tensor:
        """Map stacked frames ``[N, k E]`` to ``[N, D]``."""
        raise NotImplementedError


class StackAdapter(FrameStacker):
    """Stacked frames, then LayerNorm and a two-layer GELU MLP."""

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

    def project(self, stacked: Tensor) -> Tensor:
        """Map stacked frames ``[N, k E]`` to ``[N, D]``."""
        return self.down(nn.functional.gelu(self.up(self.norm(stacked))))


class LinearAdapter(FrameStacker):
    """Stacked frames through one linear map: the projector of XARES-LLM, where each frame is a token."""

    def __init__(self, encoder_dim: int, frame_rate: float, decoder_dim: int, rate: float = 12.5) -> None:
        super().__init__(frame_rate, rate)
        self.out = nn.Linear(self.stack * encoder_dim, decoder_dim)

    def project(self, stacked: Tensor) -> Tensor:
        """Map stacked frames ``[N, k E]`` to ``[N, D]``."""
        return self.out(stacked)
