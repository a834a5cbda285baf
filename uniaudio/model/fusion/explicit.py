"""Explicit injection of dual encoders (Interspeech 2026, paper 463): what a stream cannot predict of another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uniaudio.model.fusion.base import Fused, FusionOperator, average_per_clip, name_columns
from uniaudio.model.fusion.gate import GatedResidual
from uniaudio.ragged import Ragged
from uniaudio.types import Auxiliary


class ExplicitInjection(FusionOperator):
    """``H^_d = H_w W_{w->d}`` (9), ``R_d = H_d - H^_d`` (10), then ``GatedResidual`` over ``H_w`` and ``R_d``.

    In training (dual-encoder fusion, eq. 11-13), over all frames of the global batch:
    ``L_recon = E_t |R_d,t|^2``; ``L_decor = |C|_F^2`` with ``C = E_t (u_t - E u)(v_t - E v)^T``, ``u = P_w H_w``, ``v =
    P_r R_d``. Every stream after the base has its own residual; their losses are added up.

    Ours, for the paper does not say: the weights of both losses (1e-2), the width of P (64) and ``W_{w->d}`` = 0 at the
    start. P is a fixed random projection: a learned one would make eq. 12 vanish by shrinking itself.
    ``learned_projections`` takes the equation by its letters. The losses' gradient reaches ``W_{w->d}`` (and learned
    P), not the encoders.
    """

    auxiliary = ("recon", "decor")

    def __init__(
        self,
        names: Sequence[str],
        dims: Sequence[int],
        dim: int,
        recon_weight: float = 1e-2,
        decor_weight: float = 1e-2,
        decor_dim: int = 64,
        learned_projections: bool = False,
    ) -> None:
        super().__init__()
        self.names, self.dim = tuple(names), dim
        self.recon_weight, self.decor_weight = recon_weight, decor_weight
        base, *others = dims
        self.predict = nn.ModuleList(nn.Linear(base, width, bias=False) for width in others)
        for parameter in self.predict.parameters():
            nn.init.zeros_(parameter)
        self.project_base = nn.Linear(base, decor_dim, bias=False)
        self.project_residual = nn.ModuleList(nn.Linear(width, decor_dim, bias=False) for width in others)
        for linear in (self.project_base, *self.project_residual):
            linear.requires_grad_(learned_projections)
        self.gated = GatedResidual(dims, dim)

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        base, *others = [stream[-1] for stream in streams]
        residuals = [o.values - p(base.values) for o, p in zip(others, self.predict, strict=True)]
        fused, gate = self.gated([base.values, *residuals])
        energy = [
            r.square().mean(-1) / o.values.square().mean(-1).clamp(min=1e-12)
            for r, o in zip(residuals, others, strict=True)
        ]
        stats = {
            **name_columns("gate", self.names, average_per_clip(base, gate)),
            **name_columns(
                "residual energy", self.names[1:], average_per_clip(base, torch.stack(energy, -1))
            ),
        }
        losses = {}
        if self.training:
            losses = self.losses(base.values.detach(), [other.values.detach() for other in others])
        return Fused(base.with_values(fused), losses, stats)

    def start_from(self, maps: Sequence[Tensor]) -> None:
        """Begin as ``GatedResidual`` does: with ``W_{w->d}`` = 0 the residual is the stream itself."""
        self.gated.start_from(maps)

    def losses(self, base: Tensor, others: Sequence[Tensor]) -> dict[str, Auxiliary]:
        """Return both losses on a graph of their own: ``base [A, E_w]`` and ``others [A, E_m]`` carry no gradient."""
        with torch.autocast(base.device.type, enabled=False):  # sums over many frames need float32
            dtype = self.project_base.weight.dtype
            base, others = base.to(dtype), [other.to(dtype) for other in others]
            residuals = [other - p(base) for other, p in zip(others, self.predict, strict=True)]
            squared = torch.stack([r.float().square().sum() for r in residuals]).sum()
            u = self.project_base(base).float()
            size = u.shape[1]
            sums = [u.sum(0)]
            for residual, project in zip(residuals, self.project_residual, strict=True):
                v = project(residual).float()
                sums += [v.sum(0), (u.t() @ v).flatten()]

        def decor(means: Tensor) -> Tensor:
            mean_u, *rest = means.split([size, *[size, size * size] * len(others)])
            total = means.new_zeros(())
            for mean_v, mean_uv in zip(rest[::2], rest[1::2], strict=True):
                total = total + (mean_uv.view(size, size) - mean_u[:, None] * mean_v[None]).square().sum()
            return self.decor_weight * total

        return {
            "recon": Auxiliary(squared[None], float(len(base)), lambda mean: self.recon_weight * mean[0]),
            "decor": Auxiliary(torch.cat(sums), float(len(base)), decor),
        }
