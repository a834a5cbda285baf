"""Learned queries that read frames: a Q-Former over windows, or a perceiver resampler over whole clips."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.errors import UserError
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.attention import Segments, packed_attention
from uniaudio.model.encoders.chunking import cut_lengths
from uniaudio.ragged import Ragged

SLOWEST = 10_000.0  # of the sinusoids that tell frames their place


class QueryLayer(nn.Module):
    """Queries read the frames of their segment, then each other, then a feed-forward part; norms come before.

    Keys have no bias: a softmax ignores what is added to all of its scores. A single query has no others to read.
    """

    def __init__(self, dim: int, heads: int, shares: bool) -> None:
        super().__init__()
        self.heads = heads
        self.shares = shares
        self.norm_read, self.norm_feed = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.read_q, self.read_v, self.read_out = (nn.Linear(dim, dim) for _ in range(3))
        self.read_k = nn.Linear(dim, dim, bias=False)
        if shares:
            self.norm_share = nn.LayerNorm(dim)
            self.share_q, self.share_v, self.share_out = (nn.Linear(dim, dim) for _ in range(3))
            self.share_k = nn.Linear(dim, dim, bias=False)
        self.feed = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(
        self,
        queries: Float[Tensor, "Q H"],
        frames: Float[Tensor, "A H"],
        query_segments: Segments,
        key_segments: Segments,
    ) -> Float[Tensor, "Q H"]:
        normed = self.norm_read(queries)
        read = self.attend(
            self.read_q(normed), self.read_k(frames), self.read_v(frames), query_segments, key_segments
        )
        queries = queries + self.read_out(read)
        if self.shares:
            normed = self.norm_share(queries)
            shared = self.attend(
                self.share_q(normed),
                self.share_k(normed),
                self.share_v(normed),
                query_segments,
                query_segments,
            )
            queries = queries + self.share_out(shared)
        return queries + self.feed(self.norm_feed(queries))

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, query_segments: Segments, key_segments: Segments
    ) -> Tensor:
        query, key, value = (x.unflatten(-1, (self.heads, -1)) for x in (query, key, value))
        return packed_attention(
            query, key, value, query_segments, causal=False, key_segments=key_segments
        ).flatten(1)


class QueryAdapter(Adapter):
    """``queries`` tokens for every window or clip.

    With ``window_seconds`` the window-level Q-Former of SALMONN (Tang et al. 2024, section 3.1): a clip is cut into
    windows of so many frames, the last one shorter. Without, as many tokens for every clip, as a perceiver resampler
    gives (Flamingo, Alayrac et al. 2022, section 3.1.1; there queries hear each other along with the frames, here
    after). Frames are told their place in the window or clip by sinusoids.

    Raises:
        UserError: when the heads do not divide the width, or a window has no frame.
    """

    def __init__(
        self,
        encoder_dim: int,
        frame_rate: float,
        decoder_dim: int,
        window_seconds: float | None = None,
        queries: int = 100,
        layers: int = 2,
        heads: int = 8,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        dim = hidden or encoder_dim
        if dim % heads:
            raise UserError(f"adapter.heads: {heads} does not divide the width {dim}")
        self.kind = "perceiver" if window_seconds is None else "qformer"
        self.window = None if window_seconds is None else round(window_seconds * frame_rate)
        if self.window == 0:
            raise UserError(
                f"adapter.window_seconds: {window_seconds:g} s contain no frame at {frame_rate:g} per second"
            )
        self.dim = dim
        self.queries = nn.Parameter(torch.randn(queries, dim) * 0.02)
        self.project = nn.Linear(encoder_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(QueryLayer(dim, heads, queries > 1) for _ in range(layers))
        self.norm_out = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, decoder_dim)

    def num_tokens(self, frames: int) -> int:
        """Return ``queries`` for every begun window, or for the clip."""
        return len(self.queries) * (1 if self.window is None else -(-frames // self.window))

    def forward(self, frames: Ragged) -> Ragged:
        windows = frames.lengths if self.window is None else cut_lengths(frames.lengths, self.window)
        key_segments = Segments.of(windows, frames.device)
        query_segments = Segments.of([len(self.queries)] * len(windows), frames.device)
        placed = self.norm(self.project(frames.values))
        placed = placed + encode_positions(windows, self.dim).to(placed)
        queries = self.queries.repeat(len(windows), 1).to(placed.dtype)
        for layer in self.layers:
            queries = layer(queries, placed, query_segments, key_segments)
        return Ragged(self.out(self.norm_out(queries)), frames.map_lengths(self.num_tokens))


def encode_positions(lengths: Tensor, dim: int) -> Float[Tensor, "A H"]:
    """Return sinusoids of every frame's place in its segment, as in Vaswani et al. 2017, halves side by side."""
    step = Ragged.count_within_rows(lengths)
    rates = SLOWEST ** (-torch.arange(dim // 2, dtype=torch.float64) / max(dim // 2, 1))
    angles = step[:, None] * rates
    return F.pad(torch.cat([angles.sin(), angles.cos()], 1), (0, dim % 2))
