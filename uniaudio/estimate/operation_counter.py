"""What one forward and backward keep in memory and compute, counted while they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Shape = Sequence[int]


@dataclass(frozen=True)
class Counted:
    """Figures of a model and a batch that add up over layers and clips.

    Args:
        saved: bytes that the forward keeps for the backward. flops: of both; a product of [m, k] and [k, n] is 2 m k n.
        trained: parameters. frozen: bytes of the other ones.
    """

    saved: float
    flops: float
    trained: float
    frozen: float

    def __add__(self, other: Counted) -> Counted:
        return Counted(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: Counted) -> Counted:
        return self + other * -1

    def __mul__(self, times: float) -> Counted:
        return Counted(*(getattr(self, f.name) * times for f in fields(self)))


def attention_flops(query: Shape, key: Shape, value: Shape, *given: Any, **_: Any) -> float:
    """Return the operations of attention ``[B, H, T, d]`` over ``[B, G, S, d]``: two products, half of each if causal.

    Args:
        given: dropout and whether it is causal, as torch's kernel for CPUs takes them.
    """
    causal = len(given) > 1 and bool(given[1])
    products = 2.0 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])
    return products / 2 if causal else products


def attention_backward_flops(
    gradient: Shape, query: Shape, key: Shape, value: Shape, mixed: Shape, sums: Shape, *given: Any, **_: Any
) -> float:
    """Return twice those of the forward; what the kernel computes again is no useful work."""
    return 2 * attention_flops(query, key, value, *given)


# torch's own counter does not know the kernel that attends on a CPU
ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


def count(model: nn.Module, forward: Callable[[], Tensor]) -> Counted:
    """Run ``forward`` and the backward of the scalar it returns, and count.

    Every storage that the graph holds on to counts once and whole, the model's own parameters and buffers do not.
    Layers that recompute count with what they were given. The tensors may be without numbers.
    """
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return tensor

    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            total = forward()
        if total.requires_grad:
            total.backward()
    trained = frozen = 0
    for parameter in model.parameters():
        parameter.grad = None
        trained += parameter.numel() * parameter.requires_grad
        frozen += parameter.untyped_storage().nbytes() * (not parameter.requires_grad)
    return Counted(sum(kept.values()), counter.get_total_flops(), trained, frozen)
