"""The softmax-gated residual of dual-encoder fusion (Interspeech 2026, paper 463), the backbone of every injection."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uniaudio.model.fusion.base import Fused, FusionOperator, average_per_clip, name_columns, set_linear
from uniaudio.ragged import Ragged


class GatedResidual(nn.Module):
    """Token-wise softmax gate over projected streams with residual aggregation (dual-encoder fusion, eq. 3-6).

    ``d = W_d H_d``, ``w = W_w H_w`` (3); ``a = softmax(W_g [d; w] + b_g)`` (4); ``m = a_1 d + a_2 w`` (5);
    ``z = LN(LN(m) + d + w)`` (6). For M streams the gate is in R^M and the sums run over all of them; the order of
    the streams is that of the config. Two separate LayerNorms: the paper does not say whether they are one.
    The last LayerNorm keeps this from starting at the base encoder's own frames.
    """

    def __init__(self, dims: Sequence[int], dim: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Linear(width, dim, bias=False) for width in dims)
        self.gate = nn.Linear(len(dims) * dim, len(dims))
        self.norm_mixed = nn.LayerNorm(dim)
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, streams: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Map M tensors ``[A, E_m]`` to the fused frames ``[A, dim]`` and the gate ``[A, M]``."""
        parts = [linear(frames) for linear, frames in zip(self.project, streams, strict=True)]
        gate = self.gate(torch.cat(parts, -1)).softmax(-1)
        stacked = torch.stack(parts, 1)
        mixed = (gate[..., None] * stacked).sum(1)
        return self.norm_out(self.norm_mixed(mixed) + stacked.sum(1)), gate

    def start_from(self, maps: Sequence[Tensor]) -> None:
        """Begin with ``LN(sum_m P_m h_m)``: the gate is even, so ``LN(m)`` has the direction of the sum beside it."""
        for linear, given in zip(self.project, maps, strict=True):
            set_linear(linear, given)
        set_linear(self.gate, 0.0)


class GateFusion(FusionOperator):
    """``GatedResidual`` over the encoders' last hidden states."""

    def __init__(self, names: Sequence[str], dims: Sequence[int], dim: int) -> None:
        super().__init__()
        self.names, self.dim = tuple(names), dim
        self.gated = GatedResidual(dims, dim)

    def start_from(self, maps: Sequence[Tensor]) -> None:
        self.gated.start_from(maps)

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        base = streams[0][-1]
        fused, gate = self.gated([stream[-1].values for stream in streams])
        return Fused(
            base.with_values(fused), stats=name_columns("gate", self.names, average_per_clip(base, gate))
        )
