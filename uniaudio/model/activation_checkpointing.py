"""Layers whose activations are dropped after the forward and made again in the backward (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

# what runs a layer that recomputes; the memory estimate puts a recorder in its place
LAYER_CHECKPOINT: ContextVar[Callable[..., Any]] = ContextVar("LAYER_CHECKPOINT", default=checkpoint)


def run_layer(recomputes: bool, layer: Callable[..., Tensor], *given: Any) -> Tensor:
    """Call a layer; where it ``recomputes`` and a graph is built, only what it was ``given`` is kept.

    The random state and autocast of the forward are those of the second one, so dropout hides the same and no number
    changes. A layer must not remember anything of its first call that the second would find.
    """
    if not (recomputes and torch.is_grad_enabled()):
        return layer(*given)
    result: Tensor = LAYER_CHECKPOINT.get()(layer, *given, use_reentrant=False)
    return result


def recompute_stock_layers(model: PreTrainedModel) -> None:
    """Let the layers of a stock model drop and make again what they compute, by transformers' own switch.

    Raises:
        ValueError: when the architecture cannot.
    """
    # the first name is that of transformers 5.23; the GPU table also runs with 5.17
    switch = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    switch({"use_reentrant": False})
