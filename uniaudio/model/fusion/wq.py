"""WQ-Fusion: adaptive feature modulation of both streams, and one gated attention over both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.errors import UserError
from uniaudio.model.attention import Segments, packed_attention
from uniaudio.model.fusion.base import Fused, FusionOperator, name_columns, set_linear
from uniaudio.ragged import Ragged

EPS = 1e-6  # of the LayerNorm without affine
THETA = 10_000.0  # of the rotary positions
PEAK = 28.0  # of the logits at equal times where attention begins local; a frame further they are 6 lower


class FeatureModulation(nn.Module):
    """``[gamma, beta] = W x + b``; ``x' = (1 + gamma) LN(x) + beta``: a frame modulated by itself (AFM of
    WQ-Fusion).
    """

    def __init__(self, dim: int, zero_start: bool) -> None:
        super().__init__()
        self.modulate = nn.Linear(dim, 2 * dim)
        if zero_start:
            nn.init.zeros_(self.modulate.weight)
            nn.init.zeros_(self.modulate.bias)

    def forward(self, frames: Float[Tensor, "A E"]) -> Float[Tensor, "A E"]:
        gamma, beta = self.modulate(frames).chunk(2, -1)
        return (1 + gamma) * F.layer_norm(frames, frames.shape[-1:], eps=EPS) + beta


class GatedAttention(nn.Module):
    """Attention with rotary positions whose output is gated element by element from the query projection.

    ``[Q, G] = X W_q``; ``Y = softmax(rope(Q) rope(K)^T / sqrt(d)) V``; ``Z = W_o (Y * sigmoid(G))``.
    """

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        inner = heads * head_dim
        self.q_proj = nn.Linear(dim, 2 * inner)
        self.k_proj = nn.Linear(dim, inner)
        self.v_proj = nn.Linear(dim, inner)
        self.o_proj = nn.Linear(inner, dim, bias=False)

    def forward(
        self, frames: Float[Tensor, "T E"], positions: Int[Tensor, " T"], segments: Segments
    ) -> tuple[Float[Tensor, "T E"], Float[Tensor, "T I"]]:
        """Return the mixed frames and the gate; frames attend within their segment, not causally."""
        query, gate = self.q_proj(frames).chunk(2, -1)
        shape = (len(frames), self.heads, self.head_dim)
        query, key = (rotate_pairs(x.view(shape), positions) for x in (query, self.k_proj(frames)))
        value = self.v_proj(frames).view(shape)
        mixed = packed_attention(query, key, value, segments, causal=False).flatten(1)
        gate = gate.sigmoid()
        return self.o_proj(mixed * gate), gate

    @torch.no_grad()
    def start_local(self) -> None:
        """Begin with the mean of the frames of one time: queries and keys are one constant, which rotary positions
        match at equal times alone; the gate is half open, and values pass through.

        A width of all heads below that of the frames passes the first features on.
        """
        inner, head_dim = self.v_proj.out_features, self.v_proj.out_features // self.heads
        pairs = max(1, head_dim // 16)  # the fastest ones
        constant = torch.zeros(self.heads, head_dim)
        constant[:, :pairs] = (PEAK * head_dim**0.5 / pairs) ** 0.5
        for linear, rows in ((self.q_proj, slice(0, inner)), (self.k_proj, slice(None))):
            set_linear(linear, 0.0)
            linear.bias[rows] = constant.flatten().to(linear.bias)
        one = torch.eye(inner, self.v_proj.in_features)
        set_linear(self.v_proj, one)
        set_linear(self.o_proj, 2 * one.T)


class WqFusion(FusionOperator):
    """WQ-Fusion (arXiv 2606.26556), its exact form from the public code: modulation, source embeddings, gated
    attention.

    The streams of a clip stand one after the other on the **time** axis, rotary positions beginning anew for each
    (equal time, equal index). As published: one attention, no residual, no feed-forward part, no norm at the end, all
    frames of all streams go on (``output: both``); modulation starts from PyTorch's default, source embeddings from 0.

    Ours: streams of other widths are projected to ``dim``; ``output: sum`` adds the streams' frames of equal time, so
    that the result is one stream, and is what probes want; ``residual`` adds a skip around the attention and a pre-norm
    feed-forward part, ``blocks`` of them; ``zero_start`` makes modulation, attention and feed-forward start at nothing,
    so with ``residual`` it begins with the sum of the normalised streams; ``project_all`` gives streams of the width
    ``dim`` a projection, too.

    Raises:
        UserError: when ``head_dim`` is odd.
    """

    def __init__(
        self,
        names: Sequence[str],
        dims: Sequence[int],
        dim: int,
        output: str = "sum",
        heads: int = 8,
        head_dim: int = 128,
        blocks: int = 1,
        residual: bool = False,
        zero_start: bool = False,
        project_all: bool = False,
    ) -> None:
        super().__init__()
        if head_dim % 2:
            raise UserError(
                f"fusion.head_dim: {head_dim} is odd, but rotary positions turn pairs of channels"
            )
        self.names, self.dim, self.output, self.residual = tuple(names), dim, output, residual
        self.frames_per_frame = len(dims) if output == "both" else 1
        self.project = nn.ModuleList(
            nn.Identity() if width == dim and not project_all else nn.Linear(width, dim, bias=False)
            for width in dims
        )
        self.modulation = nn.ModuleList(FeatureModulation(dim, zero_start) for _ in dims)
        self.source = nn.Parameter(torch.zeros(len(dims), dim))
        forwards = [
            nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
            for _ in range(blocks if residual else 0)
        ]
        attentions = [GatedAttention(dim, heads, head_dim) for _ in range(blocks)]
        self.attention, self.feed_forward = nn.ModuleList(attentions), nn.ModuleList(forwards)
        if zero_start:
            for last in (*(a.o_proj for a in attentions), *(f[-1] for f in forwards)):
                for parameter in last.parameters():
                    nn.init.zeros_(parameter)

    @torch.no_grad()
    def start_from(self, maps: Sequence[Tensor]) -> None:
        """Begin with ``sum_m LN(P_m h_m)``; needs ``project_all``."""
        for linear, given in zip(self.project, maps, strict=True):
            set_linear(linear, given)
        for modulation in self.modulation:
            set_linear(modulation.modulate, 0.0)  # type: ignore[arg-type]
        attentions: Any = self.attention
        for attention in attentions:
            if self.residual:
                set_linear(attention.o_proj, 0.0)
            else:
                attention.start_local()
        forwards: Any = self.feed_forward
        for forward in forwards:
            set_linear(forward[-1], 0.0)

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        base = streams[0][-1]
        parts = [
            modulate(project(stream[-1].values)) + source
            for stream, project, modulate, source in zip(
                streams, self.project, self.modulation, self.source, strict=True
            )
        ]
        lengths = base.lengths * len(streams)
        place = index_side_by_side(base.lengths, len(streams)).to(base.device, non_blocking=True)
        frames = torch.cat(parts).index_select(0, place)
        position = Ragged.count_within_rows(lengths)
        position = (position % torch.repeat_interleave(base.lengths.clamp(min=1), lengths)).to(
            base.device, non_blocking=True
        )
        segments = Segments.of(lengths, base.device)
        gate = frames[:, :0]
        for index, attention in enumerate(self.attention):
            mixed, gate = attention(frames, position, segments)
            frames = frames + mixed if self.residual else mixed
            if self.residual:
                frames = frames + self.feed_forward[index](frames)
        apart = frames.new_zeros(frames.shape).index_copy(0, place, frames).chunk(len(streams))
        opened = frames.new_zeros(len(gate)).index_copy(0, place, gate.detach().mean(-1)).chunk(len(streams))
        columns = torch.stack([base.with_values(o.float()).mean() for o in opened], -1)
        result = (
            Ragged(frames, lengths) if self.output == "both" else base.with_values(torch.stack(apart).sum(0))
        )
        return Fused(result, stats=name_columns("gate", self.names, columns))


def index_side_by_side(lengths: Tensor, streams: int) -> Tensor:
    """Return for every row of ``[clip 0: stream 0, stream 1, ...; clip 1: ...]`` its row in ``[stream 0; stream 1;
    ...]``.
    """
    starts = Ragged.find_row_starts(lengths)[:, None] + torch.arange(streams) * lengths.sum()
    return Ragged.index_slices(starts.flatten(), lengths.repeat_interleave(streams))


def rotate_pairs(x: Float[Tensor, "T H d"], positions: Int[Tensor, " T"]) -> Float[Tensor, "T H d"]:
    """Apply rotary positions (Su et al. 2021) to heads, the two halves of a head forming the pairs."""
    half = x.shape[-1] // 2
    exact = torch.promote_types(x.dtype, torch.float32)  # positions in the thousands need more than bf16
    rates = THETA ** (-torch.arange(half, device=x.device, dtype=exact) / half)
    angles = positions[:, None].to(exact) * rates
    cos, sin = (f(angles)[:, None].to(x.dtype) for f in (torch.cos, torch.sin))
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
