"""A fixed number of tokens for every clip, by stacking frames sampled at equal distances."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from uniaudio.model.adapters.base import Adapter
from uniaudio.model.fusion.align import interpolate_at
from uniaudio.ragged import Ragged


class TokensAdapter(Adapter):
    """LayerNorm, ``tokens * stack`` points interpolated over the clip's time, stacked, Linear and SiLU, SwiGLU, Linear.

    The adapter of MoWE's group: 1500 frames of a padded window, 15 stacked, 100 tokens, widths 15 E to 5 E to the
    decoder's. Padding is what this project avoids, so the points lie on the clip's own frames; for a clip of exactly
    ``tokens * stack`` frames that is plain stacking.
    """

    kind = "tokens"

    def __init__(
        self,
        encoder_dim: int,
        frame_rate: float,
        decoder_dim: int,
        tokens: int = 100,
        hidden: int | None = None,
        stack: int = 15,
    ) -> None:
        super().__init__()
        self.tokens, self.stack = tokens, stack
        hidden = hidden or 5 * encoder_dim
        self.norm = nn.LayerNorm(encoder_dim)
        self.narrow = nn.Linear(stack * encoder_dim, hidden)
        self.gate, self.up = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, decoder_dim)

    def num_tokens(self, frames: int) -> int:
        """Return ``tokens``, for every clip."""
        return self.tokens

    def forward(self, frames: Ragged) -> Ragged:
        """Map frames ``[A, E]`` to audio tokens ``[C * tokens, D]``."""
        points = self.tokens * self.stack
        middles = torch.arange(points, dtype=torch.float64) + 0.5
        places = (middles[None] * frames.lengths[:, None] / points - 0.5).flatten()
        normed = frames.with_values(self.norm(frames.values))
        sampled = interpolate_at(normed, places, torch.full((len(frames),), points)).values
        stacked = sampled.view(len(frames) * self.tokens, self.stack * sampled.shape[1])
        hidden = F.silu(self.narrow(stacked))
        hidden = F.silu(self.gate(hidden)) * self.up(hidden)
        return Ragged(self.out(hidden), torch.full((len(frames),), self.tokens))
