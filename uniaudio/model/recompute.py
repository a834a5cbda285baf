"""Layers whose activations are dropped after the forward and made again in the backward (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def run_layer(recomputes: bool, layer: Callable[..., Tensor], *given: Any) -> Tensor:
    """Call a layer; where it ``recomputes`` and a graph is built, only what it was ``given`` is kept.

    The random state and autocast of the forward are those of the second one, so dropout hides the same and no number
    changes. A layer must not remember anything of its first call that the second would find.
    """
    if not (recomputes and torch.is_grad_enabled()):
        return layer(*given)
    result: Tensor = checkpoint(layer, *given, use_reentrant=False)
    return result
