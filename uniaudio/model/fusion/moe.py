"""Mixture-of-experts fusion of dual encoders (Interspeech 2026, paper 463), in its two modes; sparse experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.model.float32 import Float32Linear
from uniaudio.model.fusion.base import (
    Fused,
    FusionOperator,
    average_per_clip,
    entropy,
    name_columns,
    set_linear,
    set_projections,
)
from uniaudio.ragged import Ragged
from uniaudio.types import Auxiliary

SMALL_ROUTER = 0.1  # of a router's usual start, where all experts begin as the same map


def run_experts(
    experts: Sequence[nn.Module], frames: Tensor, chosen: Tensor, weights: Tensor, width: int
) -> Tensor:
    """Return ``sum_k weights[t, k] f_chosen[t, k](frames[t])`` as ``[A, width]``.

    Pairs of frame and expert are sorted by expert, so every expert sees one block of rows. An expert without
    rows still runs, on none: its parameters get a gradient of zero, which data parallelism needs on every rank.

    Args:
        frames: ``[A, E]``. chosen: ``[A, k]`` int64 indices of experts. weights: ``[A, k]``.
    """
    slots = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    counts = chosen.flatten().bincount(minlength=len(experts)).tolist()
    rows = torch.div(order, slots, rounding_mode="floor")
    blocks = frames[rows].split(counts)
    outputs = torch.cat([expert(block) for expert, block in zip(experts, blocks, strict=True)])
    outputs = outputs * weights.flatten()[order][:, None].to(outputs.dtype)
    return outputs.new_zeros(len(frames), width).index_add(0, rows, outputs)


def describe_routing(base: Ragged, load: Tensor, probabilities: Tensor) -> dict[str, Tensor]:
    """Return the share of every expert in the frames of each clip, and the entropy of the choice, per clip ``[C]``.

    Args:
        load: ``[A, experts]`` share of a frame's slots. probabilities: ``[A, experts]`` before the choice.
    """
    slots = [str(i) for i in range(load.shape[1])]
    return {
        **name_columns("expert", slots, average_per_clip(base, load)),
        "routing entropy": average_per_clip(base, entropy(probabilities)),
    }


class MoeFusion(FusionOperator):
    """``y_t = sum_{e in K} p_t,e f_e(x_t)``, ``z_t = W_o y_t`` (dual-encoder fusion, eq. 2), top-k of E experts.

    ``p = softmax(g(x_t))`` is not normalised again over the chosen experts. ``x_t`` is ``[H_1,t; ...; H_M,t]``
    (MoE-concat) or, with ``project``, ``[W_1 H_1,t; ...; W_M H_M,t]`` in the fused width (MoE-proj). Experts are
    two-layer networks with GELU; their hidden width is not published, 2 ``dim`` is ours.

    Load balancing (Switch Transformer, Fedus et al. 2022, eq. 4-6, over top-k slots): ``E sum_e F_e P_e``, ``F_e`` the
    share of slots given to e and ``P_e`` its mean probability, over all frames of the global batch. Its gradient
    reaches the router alone.
    """

    auxiliary = ("load_balance",)

    def __init__(
        self,
        names: Sequence[str],
        dims: Sequence[int],
        dim: int,
        project: bool,
        experts: int = 8,
        top_k: int = 2,
        hidden: int | None = None,
        balance_weight: float = 1e-2,
    ) -> None:
        super().__init__()
        self.names, self.dim, self.top_k, self.balance_weight = tuple(names), dim, top_k, balance_weight
        self.project = nn.ModuleList(nn.Linear(w, dim, bias=False) for w in dims) if project else None
        width = dim * len(dims) if project else sum(dims)
        hidden = hidden or 2 * dim
        self.router = Float32Linear(width, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, dim)) for _ in range(experts)
        )
        self.out = nn.Linear(dim, dim)

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        base = streams[0][-1]
        parts = [stream[-1].values for stream in streams]
        if self.project is not None:
            parts = [linear(values) for linear, values in zip(self.project, parts, strict=True)]
        inputs = torch.cat(parts, -1)
        probabilities = self.router(inputs).softmax(-1)
        weights, chosen = probabilities.topk(self.top_k, -1)
        mixed = self.out(run_experts(list(self.experts), inputs, chosen, weights, self.dim))
        load = F.one_hot(chosen, len(self.experts)).float().mean(1)  # [A, experts]
        stats = describe_routing(base, load, probabilities)
        losses = {"load_balance": self.load_balance(inputs.detach(), load)} if self.training else {}
        return Fused(base.with_values(mixed), losses, stats)

    @torch.no_grad()
    def start_from(self, maps: Sequence[Tensor]) -> None:
        """Let every expert begin as the same linear map, from ``gelu(x) - gelu(-x) = x``, and nearly even routes.

        Needs a hidden width of ``2 dim``; a narrower one keeps the first rows of the map.
        """
        if self.project is not None:
            set_projections(self.project, maps)
            one = torch.eye(self.dim, device=maps[0].device)
            maps = [one] * len(maps)
        joined = torch.cat(list(maps), 1)
        experts: Any = self.experts
        for up, _, down in experts:
            kept = joined[: up.out_features // 2]
            one = torch.eye(self.dim, len(kept), device=kept.device)
            nn.init.zeros_(up.bias)
            up.weight[: 2 * len(kept)] = torch.cat([kept, -kept])
            set_linear(down, 0.0)
            down.weight[:, : 2 * len(kept)] = torch.cat([one, -one], 1)
        self.router.weight.mul_(SMALL_ROUTER)
        nn.init.zeros_(self.router.bias)
        set_linear(self.out, len(self.experts) / self.top_k * torch.eye(self.dim))

    def load_balance(self, inputs: Tensor, load: Tensor) -> Auxiliary:
        """Return the loss on the router's own graph: inputs ``[A, width]`` and load ``[A, E]`` carry no gradient."""
        probabilities = self.router(inputs).softmax(-1)
        count, weight = load.shape[1], self.balance_weight

        def loss(means: Tensor) -> Tensor:
            shares, mean = means.split(count)
            return weight * count * (shares * mean).sum()

        return Auxiliary(torch.cat([load.sum(0), probabilities.sum(0)]), float(len(load)), loss)
