"""A learned scalar for every stream."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from uniaudio.model.fusion.base import Fused, FusionOperator, identity_or_zero, named
from uniaudio.ragged import Ragged


class ScalarMix(FusionOperator):
    """``z_t = gamma sum_m s_m W_m h_m,t`` with ``s = softmax(theta)`` (scalar mix of ELMo, Peters et al. 2018, eq. 1).

    ``theta`` starts at 0 and ``gamma`` at M, so with ``start: base`` (``W_1 = I``, the others 0) it begins with the
    base.
    """

    def __init__(self, names: Sequence[str], dims: Sequence[int], dim: int, start: str = "base") -> None:
        super().__init__()
        self.names, self.dim = tuple(names), dim
        projections = [nn.Linear(width, dim, bias=False) for width in dims]
        self.project = nn.ModuleList(projections)
        self.theta = nn.Parameter(torch.zeros(len(dims)))
        self.gamma = nn.Parameter(torch.tensor(float(len(dims))))
        if start == "base":
            for index, linear in enumerate(projections):
                identity_or_zero(linear, base=index == 0)

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        last = [stream[-1] for stream in streams]
        shares = self.theta.softmax(0)
        parts = [s * linear(f.values) for s, linear, f in zip(shares, self.project, last, strict=True)]
        mixed = self.gamma * torch.stack(parts).sum(0)
        rows = shares.detach().float().expand(len(last[0]), -1)
        return Fused(last[0].with_values(mixed), stats=named("mix", self.names, rows))
