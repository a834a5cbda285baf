"""Fusion without interaction: concatenation with a linear map, the sum of projections, and a scalar mix."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uniaudio.model.fusion.base import (
    Fused,
    FusionOperator,
    initialize_identity_or_zero,
    name_columns,
    set_projections,
)
from uniaudio.ragged import Ragged


class ConcatFusion(FusionOperator):
    """``z_t = W [h_1,t; ...; h_M,t] + b`` (dual-encoder fusion, section 2.2, "Concatenation").

    Args:
        names, dims: of the M streams. dim: width of the result.
        start: ``base`` begins with the base stream alone (``W = [I 0 ... 0]``), ``random`` with PyTorch's default.
    """

    def __init__(self, names: Sequence[str], dims: Sequence[int], dim: int, start: str = "base") -> None:
        super().__init__()
        self.names, self.dim = tuple(names), dim
        self.out = nn.Linear(sum(dims), dim)
        if start == "base":
            initialize_identity_or_zero(self.out, base=True)

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        last = [stream[-1] for stream in streams]
        joined = torch.cat([frames.values for frames in last], dim=-1)
        return Fused(last[0].with_values(self.out(joined)))

    @torch.no_grad()
    def start_from(self, maps: Sequence[Tensor]) -> None:
        self.out.weight.copy_(torch.cat(list(maps), 1))
        nn.init.zeros_(self.out.bias)


class SumFusion(FusionOperator):
    """``z_t = sum_m (W_m h_m,t + b_m)``; with ``start: base`` it begins with the base stream alone."""

    has_bias = True

    def __init__(self, names: Sequence[str], dims: Sequence[int], dim: int, start: str = "base") -> None:
        super().__init__()
        self.names, self.dim = tuple(names), dim
        projections = [nn.Linear(width, dim, self.has_bias) for width in dims]
        self.project = nn.ModuleList(projections)
        if start == "base":
            for index, linear in enumerate(projections):
                initialize_identity_or_zero(linear, base=index == 0)

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        last = [stream[-1] for stream in streams]
        parts = [linear(frames.values) for linear, frames in zip(self.project, last, strict=True)]
        return Fused(last[0].with_values(torch.stack(parts).sum(0)))

    def start_from(self, maps: Sequence[Tensor]) -> None:
        set_projections(self.project, maps)


class ScalarMix(SumFusion):
    """``z_t = gamma sum_m s_m W_m h_m,t`` with ``s = softmax(theta)`` (scalar mix of ELMo, Peters et al. 2018, eq. 1).

    ``theta`` starts at 0 and ``gamma`` at M, so with ``start: base`` (``W_1 = I``, the others 0) it begins with the
    base.
    """

    has_bias = False

    def __init__(self, names: Sequence[str], dims: Sequence[int], dim: int, start: str = "base") -> None:
        super().__init__(names, dims, dim, start)
        self.theta = nn.Parameter(torch.zeros(len(dims)))
        self.gamma = nn.Parameter(torch.tensor(float(len(dims))))

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        last = [stream[-1] for stream in streams]
        shares = self.theta.softmax(0)
        parts = [s * linear(f.values) for s, linear, f in zip(shares, self.project, last, strict=True)]
        mixed = self.gamma * torch.stack(parts).sum(0)
        rows = shares.detach().float().expand(len(last[0]), -1)
        return Fused(last[0].with_values(mixed), stats=name_columns("mix", self.names, rows))
