"""The mixture of SwiGLU experts that won track A of the Interspeech 2026 challenge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.model.float32 import Float32Linear
from uniaudio.model.fusion.base import Fused, FusionOperator, set_projections
from uniaudio.model.fusion.moe import SMALL_ROUTER, describe_routing, run_experts
from uniaudio.ragged import Ragged


class SwiGlu(nn.Module):
    """``W_down (SiLU(W_gate x) * W_up x)`` without biases, dropout before the last map."""

    def __init__(self, width: int, hidden: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Linear(width, hidden, bias=False)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.dropout(F.silu(self.gate(x)) * self.up(x)))


class UniMoeFusion(FusionOperator):
    """UniAE-MoE (winner of track A; the form of its public code): routed experts beside a shared one.

    ``e_m = W_m h_m``; ``c = RMSNorm([e_1; ...; e_M])``; router = Linear, SiLU, dropout 0.05, Linear; top-2 with a
    softmax over the two chosen logits; experts are SwiGLU with dropout 0.1; ``z = RMSNorm(g shared(c) + (1 - g)
    routed(c))``, ``g`` the sigmoid of a learned scalar that starts at 0.5. No load-balancing loss. Published: 4
    experts, hidden width 3413 for a width of 1280 (8/3 of it). There all experts run on all frames; here each runs on
    the frames that chose it, with the same result.
    """

    def __init__(
        self,
        names: Sequence[str],
        dims: Sequence[int],
        dim: int,
        experts: int = 4,
        top_k: int = 2,
        hidden: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.names, self.dim, self.top_k = tuple(names), dim, top_k
        width = dim * len(dims)
        hidden = hidden or round(dim * 8 / 3)
        self.project = nn.ModuleList(nn.Linear(given, dim) for given in dims)
        self.norm_in = nn.RMSNorm(width, eps=1e-6)
        self.router = nn.Sequential(
            Float32Linear(width, dim), nn.SiLU(), nn.Dropout(0.05), Float32Linear(dim, experts)
        )
        self.experts = nn.ModuleList(SwiGlu(width, hidden, dim, dropout) for _ in range(experts))
        self.shared = SwiGlu(width, hidden, dim, dropout)
        self.balance = nn.Parameter(torch.tensor(0.5))
        self.norm_out = nn.RMSNorm(dim, eps=1e-6)

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        base = streams[0][-1]
        parts = [p(stream[-1].values) for p, stream in zip(self.project, streams, strict=True)]
        inputs = self.norm_in(torch.cat(parts, -1))
        logits = self.router(inputs)
        best, chosen = logits.topk(self.top_k, -1)
        routed = run_experts(list(self.experts), inputs, chosen, best.softmax(-1), self.dim)
        share = self.balance.sigmoid()
        fused = self.norm_out(share * self.shared(inputs) + (1 - share) * routed)
        load = F.one_hot(chosen, len(self.experts)).float().mean(1)
        stats = describe_routing(base, load, logits.softmax(-1))
        return Fused(base.with_values(fused), stats=stats)

    @torch.no_grad()
    def start_from(self, maps: Sequence[Tensor]) -> None:
        """Let every expert begin as the same map, so that ``z = RMSNorm(sum_m P_m h_m)``, and nearly even routes.

        A SwiGLU is linear where its gate reads a constant: the last feature of the first stream becomes one.
        """
        set_projections(self.project, maps)
        first: Any = self.project[0]
        first.weight[-1] = 0.0
        first.bias[-1] = 1.0
        one = torch.eye(self.dim, device=first.weight.device)
        one[-1, -1] = 0.0
        experts: Any = (self.shared, *self.experts)
        for expert in experts:
            width = min(self.dim, expert.up.out_features)
            expert.up.weight[:width] = one[:width].repeat(1, len(maps))
            expert.gate.weight[:width] = 0.0
            expert.gate.weight[:width, self.dim - 1] = 1.0
            expert.down.weight.zero_()
            expert.down.weight[:, :width] = one[:, :width]
        last: Any = self.router[-1]
        last.weight.mul_(SMALL_ROUTER)
        nn.init.zeros_(last.bias)
