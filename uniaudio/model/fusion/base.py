"""The contract of a fusion operator: aligned streams in, one stream out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from uniaudio.model.init_args import InitArgsModule
from uniaudio.ragged import Ragged
from uniaudio.types import Auxiliary


@dataclass(frozen=True)
class Fused:
    """Frames ``[A, E]``, auxiliary losses (in training) and per-clip ``[C]`` statistics, as in ``Encoded``."""

    frames: Ragged
    losses: Mapping[str, Auxiliary] = field(default_factory=dict)
    stats: Mapping[str, Tensor] = field(default_factory=dict)


class FusionOperator(InitArgsModule):
    """Maps M streams that share their frame rate and lengths to one; the first is the base.

    Attributes:
        dim: width E of a fused frame. names: of the M streams.
        uses_layers: it is given every hidden state of every stream instead of the last ones.
        frames_per_frame: fused frames of a clip for each frame of a stream.
        auxiliary: names of the losses it adds in training.
    """

    dim: int
    names: tuple[str, ...]
    uses_layers: bool = False
    frames_per_frame: int = 1
    auxiliary: tuple[str, ...] = ()

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        """Fuse the streams: for each its hidden states ``[A, E_m]``, the last one only unless ``uses_layers``."""
        raise NotImplementedError

    def start_from(self, maps: Sequence[Tensor]) -> None:
        """Set the parameters so that the fused frames begin as ``sum_m P_m h_m``, as far as the equation allows.

        Args:
            maps: ``P_m [dim, E_m]``; side by side their rows are orthonormal. Streams are standardised.
        """
        raise NotImplementedError


@torch.no_grad()
def initialize_identity_or_zero(linear: nn.Linear, base: bool) -> None:
    """Start a projection so that only the base stream passes, unchanged as far as the widths allow.

    With a fused width equal to the base's, training starts from exactly the base encoder's frames.
    """
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    if base:
        linear.weight.copy_(torch.eye(*linear.weight.shape, device=linear.weight.device))


@torch.no_grad()
def set_linear(linear: nn.Module, weight: Tensor | float) -> None:
    """Give a linear map these weights, in its own dtype, and no bias."""
    assert isinstance(linear, nn.Linear)
    linear.weight.copy_(torch.as_tensor(weight).expand_as(linear.weight))
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)


def set_projections(projections: nn.ModuleList, maps: Sequence[Tensor]) -> None:
    """Give the projection of every stream its map, see ``set_linear``."""
    for linear, given in zip(projections, maps, strict=True):
        set_linear(linear, given)


def average_per_clip(frames: Ragged, values: Tensor) -> Tensor:
    """Return the mean ``[C, ...]`` of per-frame values ``[A, ...]`` over each clip's frames, without gradient."""
    return frames.with_values(values.detach().float()).mean()


def name_columns(prefix: str, names: Sequence[str], columns: Tensor) -> dict[str, Tensor]:
    """Return ``{prefix/name: column [C]}`` of a matrix ``[C, len(names)]``."""
    return {f"{prefix}/{name}": columns[:, i] for i, name in enumerate(names)}


def entropy(probabilities: Tensor) -> Tensor:
    """Return the Shannon entropy in nats over the last axis."""
    return -torch.special.xlogy(probabilities, probabilities).sum(-1)
