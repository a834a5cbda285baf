"""Layers whose activations are dropped after the forward and made again in the backward (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from uniaudio.model.depth_injection import find_stock_layers

# what runs a layer that recomputes; the memory estimate puts a recorder in its place
LAYER_CHECKPOINT: ContextVar[Callable[..., Any]] = ContextVar("LAYER_CHECKPOINT", default=checkpoint)
# classes of layers that recompute, by the stock class: one for all layers of a model, so that a compiled graph fits all
RECOMPUTING: dict[type[nn.Module], type[nn.Module]] = {}


def run_layer(recomputes: bool, layer: Callable[..., Any], *given: Any) -> Any:
    """Call a layer; where it ``recomputes`` and a graph is built, only what it was ``given`` is kept.

    The random state and autocast of the forward are those of the second one, so dropout hides the same and no number
    changes. A layer must not remember anything of its first call that the second would find.
    """
    if not (recomputes and torch.is_grad_enabled()):
        return layer(*given)
    run = checkpoint if torch.compiler.is_compiling() else LAYER_CHECKPOINT.get()
    return run(layer, *given, use_reentrant=False)


def find_recomputable_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers of a stock model that may be run a second time; none where its class says that it cannot."""
    if not model.supports_gradient_checkpointing:
        return []
    layers: list[nn.Module] = [
        part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)
    ]
    return layers or find_stock_layers(model)


def recompute_layer(layer: nn.Module) -> None:
    """Let a layer of a stock model drop and make again what it computes, in eval mode too.

    The switch of transformers works in training mode alone, in which the layers of a frozen model would drop some of
    their activations at random.
    """
    if not hasattr(layer, "stock_forward"):
        # a bound method as its attribute would be a reference to itself, and only the garbage collector would free it
        kind = type(layer)
        if kind not in RECOMPUTING:
            RECOMPUTING[kind] = make_recomputing_class(kind)
        layer.__class__ = RECOMPUTING[kind]


def make_recomputing_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return a class of layers that is ``kind`` in all, its name included, but for a forward that recomputes."""
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**names, "forward": run_recomputed, "stock_forward": kind.forward})


def run_recomputed(layer: Any, *given: Any, **settings: Any) -> Any:
    """Run the ``forward`` that a layer's class had; only what was ``given`` is kept for the backward."""
    return run_layer(True, partial(type(layer).stock_forward, layer, **settings), *given)


def recompute_stock_layers(model: PreTrainedModel) -> None:
    """Let the layers of a stock model drop and make again what they compute, by transformers' own switch.

    Raises:
        ValueError: when the architecture cannot.
    """
    # the first name is that of transformers 5.23; the GPU table also runs with 5.17
    switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    switch({"use_reentrant": False})
