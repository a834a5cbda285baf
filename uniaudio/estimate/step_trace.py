"""What one step of a model keeps and computes, recorded while it runs on tensors without values."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from uniaudio.model.activation_checkpointing import LAYER_CHECKPOINT

Shape = tuple[int, ...]
Storages = dict[int, Any]  # by identity; held, so that no identity is given twice


@dataclass(frozen=True)
class LinearCost:
    """What grows with the clips of a micro-batch: bytes kept for the backward and FLOPs of forward and backward.

    Args:
        fixed: bytes that do not depend on the clips: casts of weights. per_clip: bytes. flops: per clip; a product of
            ``[m, k]`` and ``[k, n]`` is ``2 m k n``.
    """

    fixed: float = 0.0
    per_clip: float = 0.0
    flops: float = 0.0

    def __add__(self, other: LinearCost) -> LinearCost:
        return LinearCost(self.fixed + other.fixed, self.per_clip + other.per_clip, self.flops + other.flops)

    def __mul__(self, times: float) -> LinearCost:
        return LinearCost(self.fixed * times, self.per_clip * times, self.flops * times)

    def compute_saved_bytes(self, clips: float) -> float:
        """Return the bytes that a micro-batch of so many clips keeps."""
        return self.fixed + self.per_clip * clips


@dataclass
class LayerCall:
    """One call of a layer that can recompute.

    Args:
        part: whose layer it is. inputs: storages that a layer that recomputes keeps. inside: those that it keeps
            otherwise. flops: of what a recomputation repeats, up to the last tensor that the backward needs.
    """

    part: str
    inputs: Storages
    inside: Storages = field(default_factory=dict)
    flops: float = 0.0


def count_attention_flops(query: Shape, key: Shape, value: Shape, *given: Any, **_: Any) -> float:
    """Return the FLOPs of attention ``[B, H, T, d]`` over ``[B, G, S, d]``: two products, half of each if causal.

    Args:
        given: dropout and whether it is causal, as torch's kernel for CPUs takes them.
    """
    causal = len(given) > 1 and bool(given[1])
    products = 2.0 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])
    return products / 2 if causal else products


def count_attention_backward_flops(
    gradient: Shape, query: Shape, key: Shape, value: Shape, mixed: Shape, sums: Shape, *given: Any, **_: Any
) -> float:
    """Return twice those of the forward; what the kernel computes again is no useful work."""
    return 2 * count_attention_flops(query, key, value, *given)


def count_grouped_product_flops(left: Shape, right: Shape, *_: Any, **__: Any) -> float:
    """Return the FLOPs of the products of experts, each with its share of the rows or of the inner dimension."""
    return 2.0 * left[0] * left[1] * right[-1]


# torch's own table does not know the kernel that attends on a CPU, nor the product of experts
FLOPS: Mapping[Any, Callable[..., float]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(count_attention_flops),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(
        count_attention_backward_flops
    ),
    torch.ops.aten._grouped_mm: shape_wrapper(count_grouped_product_flops),
}


class StepTrace(TorchDispatchMode):
    """Records the forward and backward of a model whose layers all recompute as far as they can.

    The layers do not: they are run once, and what each of them keeps inside is recorded apart, so that one step tells
    the cost of every choice. Choices of routers, for which there are no values, are spread evenly over the experts.

    Args:
        model: see ``build_fake_model``. parts: those that recompute, by name. clips: equal clips of the step.
        vocabulary: logits of so many columns are left out, they are counted apart.
    """

    def __init__(self, model: nn.Module, parts: Mapping[str, nn.Module], clips: int, vocabulary: int) -> None:
        super().__init__()
        self.clips, self.vocabulary = clips, vocabulary
        self.owners = {id(module): name for name, part in parts.items() for module in part.modules()}
        self.parameters: Storages = {}
        self.add_to(self.parameters, (*model.parameters(), *model.buffers()))
        self.made_of_weights: Storages = {}
        self.outside: Storages = {}
        self.layers: list[LayerCall] = []
        self.flops = 0.0
        for part in parts.values():
            for module in part.modules():
                if hasattr(module, "_gradient_checkpointing_func"):
                    module._gradient_checkpointing_func = self.run_layer  # type: ignore[assignment]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet is torch.ops.aten._grouped_mm and args[0].dtype != torch.bfloat16:
            out = func(args[0].bfloat16(), args[1].bfloat16(), *args[2:], **kwargs).to(args[0].dtype)
        else:
            out = func(*args, **kwargs)
        if packet in FLOPS:
            self.flops += FLOPS[packet](*args, **kwargs, out_val=out)
        elif packet is torch.ops.aten.topk or (packet is torch.ops.aten.max and isinstance(out, tuple)):
            out = (out[0], spread_evenly(out[1], args[0].shape[-1]))
        elif packet is torch.ops.aten.argmax:
            out = torch.zeros(out.shape, dtype=out.dtype)
        given = list(iterate_tensors(args))
        if given and all(self.is_weight(tensor) for tensor in given):
            self.add_to(self.made_of_weights, iterate_tensors((out,)))
        return out

    def is_weight(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter or buffer, or computed from nothing else."""
        identity = tensor.untyped_storage()._cdata
        return identity in self.parameters or identity in self.made_of_weights

    def add_to(self, storages: Storages, tensors: Iterable[Tensor]) -> None:
        """Add the storages of tensors, parameters and logits left out where these are known."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            logits = tensor.dim() == 2 and tensor.shape[1] == self.vocabulary
            if storages is self.parameters or (storage._cdata not in self.parameters and not logits):
                storages[storage._cdata] = storage

    @contextmanager
    def track_storages(self, storages: Storages, call: LayerCall | None = None) -> Iterator[None]:
        """Add what autograd keeps; for the call of a layer, see how far it is needed again."""
        begun = self.flops

        def pack(tensor: Tensor) -> Tensor:
            self.add_to(storages, (tensor,))
            if call is not None:
                call.flops = self.flops - begun
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    def run_layer(self, layer: Callable[..., Any], *given: Any, **_: Any) -> Any:
        """Run a layer in the place of ``torch.utils.checkpoint.checkpoint``, and record its call."""
        if not torch.is_grad_enabled():
            return layer(*given)
        places = (layer, *getattr(layer, "args", ()), *given)
        call = LayerCall(next(self.owners[id(p)] for p in places if id(p) in self.owners), {})
        self.add_to(call.inputs, (tensor for tensor in given if isinstance(tensor, Tensor)))
        self.layers.append(call)
        with self.track_storages(call.inside, call):
            return layer(*given)

    def run(self, forward: Callable[[], Tensor]) -> None:
        """Run ``forward`` and the backward of the scalar it returns."""
        token = LAYER_CHECKPOINT.set(self.run_layer)
        try:
            with self:
                with self.track_storages(self.outside):
                    total = forward()
                if total.requires_grad:
                    total.backward()
        finally:
            LAYER_CHECKPOINT.reset(token)

    def cost(self, recomputed: Collection[str] = ()) -> LinearCost:
        """Return the cost of the step when these parts recompute."""
        storages, flops = dict(self.outside), self.flops
        for call in self.layers:
            again = call.part in recomputed
            storages |= call.inputs if again else call.inside
            flops += call.flops * again
        return self.measure_storages(storages, flops)

    def compute_layers_cost(self, part: str) -> LinearCost:
        """Return what the layers of a part keep when they do not recompute."""
        calls = [call.inside for call in self.layers if call.part == part]
        return self.measure_storages({key: storage for inside in calls for key, storage in inside.items()})

    def find_largest_layer(self, part: str) -> LinearCost:
        """Return what the largest layer of a part keeps beyond its inputs, while its backward runs."""
        inside = [
            self.measure_storages({key: s for key, s in call.inside.items() if key not in call.inputs})
            for call in self.layers
            if call.part == part
        ]
        return max(inside, key=lambda cost: cost.compute_saved_bytes(1), default=LinearCost())

    def measure_storages(self, storages: Storages, flops: float = 0.0) -> LinearCost:
        """Return the bytes of storages, those made of weights as fixed ones."""
        fixed = sum(s.nbytes() for key, s in storages.items() if key in self.made_of_weights)
        everything = sum(s.nbytes() for s in storages.values())
        return LinearCost(fixed, (everything - fixed) / self.clips, flops / self.clips)


def iterate_tensors(values: Any) -> Iterator[Tensor]:
    """Go through the tensors among arguments or results, those in lists included."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from iterate_tensors(value)


def spread_evenly(chosen: Tensor, choices: int) -> Tensor:
    """Return indices in the place of ``chosen [..., k]``: every choice as often as the others."""
    return (torch.arange(chosen.numel()) % choices).view(chosen.shape)
