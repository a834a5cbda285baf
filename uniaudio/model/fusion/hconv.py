"""The model-and-layer interface (arXiv 2511.08389): hierarchical convolution over the layer axis."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.errors import UserError
from uniaudio.model.fusion.base import Fused, FusionOperator
from uniaudio.ragged import Ragged

KERNEL, STRIDE, PADDING = 5, 3, 2


def count_convolutions(layers: int) -> int:
    """Return ``floor(log3 layers)``, in whole numbers: a floating logarithm is wrong at exact powers of 3 by chance."""
    count = 0
    while STRIDE ** (count + 1) <= layers:
        count += 1
    return count


class HierarchicalConvolution(nn.Module):
    """Conv1d **along the layer axis**, channels = features (arXiv 2406.12209; exact form from its public code).

    The stack ``[A, D, L]`` runs through ``floor(log3 L)`` convolutions (kernel 5, stride 3, padding 2), ReLU after
    each; all but the last keep D channels, the last has ``floor(D / L_n)``; what is left of the layers is laid side by
    side. That can be narrower than D (1023 of 1024, 510 of 512), so ours ends in a linear map to ``dim``.

    Raises:
        UserError: for fewer than 3 layers, which leave nothing to convolve.
    """

    def __init__(self, layers: int, width: int, dim: int) -> None:
        super().__init__()
        count = count_convolutions(layers)
        if not count:
            raise UserError(f"fusion.kind hconv: {layers} hidden states are too few; it needs at least 3")
        left = layers
        for _ in range(count):
            left = (left + 2 * PADDING - KERNEL) // STRIDE + 1
        channels = [width] * count + [width // left]
        self.convolve = nn.ModuleList(
            nn.Conv1d(a, b, KERNEL, STRIDE, PADDING) for a, b in itertools.pairwise(channels)
        )
        self.out = nn.Linear(channels[-1] * left, dim)

    def forward(self, stack: Tensor) -> Tensor:
        """Map ``[A, D, L]`` to ``[A, dim]``."""
        for convolution in self.convolve:
            stack = F.relu(convolution(stack))
        return self.out(stack.flatten(1))


class HconvFusion(FusionOperator):
    """Fuses the layers of all models (arXiv 2511.08389): stacks brought to one layer count, merged, then convolved.

    The layer axis of every stack is interpolated linearly to the longest. ``merge: add`` (HConv) adds the stacks;
    ``merge: concat`` (CHConv) joins them on features and projects back to the width.

    Ours, for the paper does not say: the width is that of the base stream; streams of another width are projected to it
    before they are added (CHConv projects anyway).

    Args:
        layers: number of hidden states of every stream. dims: their widths, the same for all layers of a stream.
    """

    uses_layers = True

    def __init__(
        self, names: Sequence[str], dims: Sequence[int], dim: int, layers: Sequence[int], merge: str = "add"
    ) -> None:
        super().__init__()
        self.names, self.dim, self.merge, self.layers = tuple(names), dim, merge, max(layers)
        width = dims[0]
        if merge == "concat":
            self.project = nn.ModuleList([nn.Linear(sum(dims), width)])
        else:
            self.project = nn.ModuleList(
                nn.Identity() if given == width else nn.Linear(given, width, bias=False) for given in dims
            )
        self.hierarchy = HierarchicalConvolution(self.layers, width, dim)

    def forward(self, streams: Sequence[Sequence[Ragged]]) -> Fused:
        stacks = [match_layers([state.values for state in states], self.layers) for states in streams]
        if self.merge == "concat":
            stack = self.project[0](torch.cat(stacks, -1))
        else:
            stack = torch.stack([p(s) for p, s in zip(self.project, stacks, strict=True)]).sum(0)
        return Fused(streams[0][-1].with_values(self.hierarchy(stack.transpose(1, 2))))


def match_layers(states: Sequence[Tensor], layers: int) -> Tensor:
    """Stack L hidden states ``[A, D]`` to ``[A, layers, D]``, interpolated linearly between first and last layer."""
    stack = torch.stack(list(states), 1)
    if len(states) == layers:
        return stack
    place = torch.linspace(0, len(states) - 1, layers, device=stack.device, dtype=torch.float64)
    low = place.floor().long().clamp(max=max(len(states) - 2, 0))
    share = (place - low).to(stack.dtype)[:, None]
    return stack[:, low] * (1 - share) + stack[:, (low + 1).clamp(max=len(states) - 1)] * share
