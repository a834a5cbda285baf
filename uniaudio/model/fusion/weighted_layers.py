"""Learned softmax weights over hidden states, and over models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uniaudio.model.fusion.base import Fused, FusionOperator, name_columns, set_linear
from uniaudio.ragged import Ragged


class LayerFusion(FusionOperator):
    """``z_t = M sum_m v_m W_m sum_l w_m,l h_m,l,t``, ``w_m`` and ``v`` softmax of logits that start at 0.

    The weighted sums of layers, of models and of both that the model-and-layer interface (arXiv 2511.08389, section 4.1
    of its description, "WS") compares itself with; one model gives plain layer fusion. ``W_m`` starts as the identity
    for a stream as wide as ``dim`` and is left out where there is one stream of that width.

    Args:
        layers: number of hidden states of every stream; dims: their widths, the same for all layers of a stream.
    """

    uses_layers = True

    def __init__(self, names: Sequence[str], dims: Sequence[int], dim: int, layers: Sequence[int]) -> None:
        super().__init__()
        self.names, self.dim = tuple(names), dim
        self.logits = nn.ParameterList(nn.Parameter(torch.zeros(count)) for count in layers)
        self.models = nn.Parameter(torch.zeros(len(dims))) if len(dims) > 1 else None
        alone = len(dims) == 1 and dims[0] == dim
        self.project = nn.ModuleList(
            nn.Identity() if alone else nn.Linear(width, dim, bias=False) for width in dims
        )
        for linear, width in zip(self.project, dims, strict=True):
            if isinstance(linear, nn.Linear) and width == dim:
                with torch.no_grad():
                    linear.weight.copy_(torch.eye(width))

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        base = streams[0][-1]
        shares = torch.ones(1, device=base.device) if self.models is None else self.models.softmax(0)
        mixed: list[Tensor] = []
        stats: dict[str, Tensor] = {}
        for index, (name, states) in enumerate(zip(self.names, streams, strict=True)):
            weights = self.logits[index].softmax(0)
            summed = sum_of(weights, [state.values for state in states])
            mixed.append(len(streams) * shares[index] * self.project[index](summed))
            rows = weights.detach().float().expand(len(base), -1)
            stats |= name_columns(f"layers of {name}", [str(i) for i in range(len(states))], rows)
        if len(streams) > 1:
            stats |= name_columns("models", self.names, shares.detach().float().expand(len(base), -1))
        return Fused(base.with_values(torch.stack(mixed).sum(0)), stats=stats)

    def start_from(self, maps: Sequence[Tensor]) -> None:
        """Begin with the mean of the layers; a single stream of the fused width has no map and stays as it is."""
        for linear, given in zip(self.project, maps, strict=True):
            if isinstance(linear, nn.Linear):
                set_linear(linear, given)


def sum_of(weights: Tensor, values: Sequence[Tensor]) -> Tensor:
    """Return ``sum_l weights[l] values[l]`` without stacking the layers."""
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total
