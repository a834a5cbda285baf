"""Every operator with streams to try it on; loop-written references stand in the tests."""

import torch

from uniaudio.model.fusion.concat_sum_mix import ConcatFusion, ScalarMix, SumFusion
from uniaudio.model.fusion.explicit import ExplicitInjection
from uniaudio.model.fusion.gate import GateFusion
from uniaudio.model.fusion.hconv import HconvFusion
from uniaudio.model.fusion.moe import MoeFusion
from uniaudio.model.fusion.unimoe import UniMoeFusion
from uniaudio.model.fusion.weighted_layers import LayerFusion
from uniaudio.model.fusion.wq import WqFusion
from uniaudio.ragged import Ragged

NAMES, DIMS, DIM, LAYERS = ("w", "d"), (6, 10), 6, (4, 7)

MAKE = {
    "concat": lambda: ConcatFusion(NAMES, DIMS, DIM, "random"),
    "sum": lambda: SumFusion(NAMES, DIMS, DIM, "random"),
    "mix": lambda: ScalarMix(NAMES, DIMS, DIM, "random"),
    "gate": lambda: GateFusion(NAMES, DIMS, DIM),
    "moe_concat": lambda: MoeFusion(NAMES, DIMS, DIM, project=False, experts=4),
    "moe_proj": lambda: MoeFusion(NAMES, DIMS, DIM, project=True, experts=4),
    "explicit": lambda: ExplicitInjection(NAMES, DIMS, DIM, decor_dim=3, learned_projections=True),
    "wq": lambda: WqFusion(NAMES, DIMS, DIM, heads=2, head_dim=4),
    "wq_both": lambda: WqFusion(NAMES, DIMS, DIM, output="both", heads=2, head_dim=4),
    "wq_blocks": lambda: WqFusion(NAMES, DIMS, DIM, heads=2, head_dim=4, blocks=2, residual=True),
    "layers": lambda: LayerFusion(NAMES, DIMS, DIM, LAYERS),
    "hconv": lambda: HconvFusion(NAMES, DIMS, DIM, LAYERS, "add"),
    "chconv": lambda: HconvFusion(NAMES, DIMS, DIM, LAYERS, "concat"),
    "unimoe": lambda: UniMoeFusion(NAMES, DIMS, DIM, experts=3, dropout=0.0),
}


def make(kind, seed=0):
    """An operator in float64 whose parameters are all away from their starting values."""
    torch.manual_seed(seed)
    operator = MAKE[kind]().double()
    with torch.no_grad():
        for parameter in operator.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return operator


def streams(lengths, seed=0, layers=LAYERS, dims=DIMS):
    """For each stream its hidden states, with gradient."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths, dtype=torch.int64)
    total = int(lengths.sum())
    return [
        [
            Ragged(
                torch.randn(total, dim, dtype=torch.float64, generator=generator).requires_grad_(), lengths
            )
            for _ in range(count)
        ]
        for dim, count in zip(dims, layers, strict=True)
    ]
