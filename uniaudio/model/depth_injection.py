"""Features that are added to the hidden states behind some layers of a decoder (DeepStack, arXiv 2406.04334)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.errors import UserError


def find_stock_layers(lm: Any) -> list[nn.Module]:
    """Return the layers of a stock model that its own class says must stay in one piece; of None: none."""
    kinds = set(getattr(lm, "_no_split_modules", None) or ())
    return [part for part in lm.modules() if type(part).__name__ in kinds] if kinds else []


class DepthInjection:
    """Splits wide rows into what the first layer reads and what is added behind chosen layers.

    A row ``[(1 + K) * D]`` is an embedding and K features, which are zero at the places of text. So features go
    wherever rows go: packed, padded, behind a shared prefix, into a cache.

    Args:
        lm: a causal language model, whose layers get hooks. layers: numbers of its layers, in the order of features.

    Raises:
        UserError: when it has no such layer.
    """

    def __init__(self, lm: Any, layers: Sequence[int]) -> None:
        stack = find_stock_layers(lm)
        refuse_missing_layers(len(stack), layers, type(lm).__name__)
        self.dim = int(lm.get_input_embeddings().embedding_dim)
        self.features: list[Tensor | None] = [None] * len(layers)
        self.once = False
        for number, layer in enumerate(layers):
            stack[layer].register_forward_hook(partial(self.add, number))

    def split(self, rows: Tensor, once: bool = False) -> Tensor:
        """Return the embeddings ``[B, T, D]`` of wide rows and keep their features for the layers.

        Args:
            once: each layer adds them in its first call alone, as for a prompt that is continued from a cache.
        """
        embeds, *features = rows.split(self.dim, -1)
        self.once = once
        self.features = list(features) or [None] * len(self.features)
        return embeds

    def clear(self) -> None:
        """Forget the features."""
        self.features = [None] * len(self.features)

    @torch.compiler.disable
    def add(self, number: int, layer: nn.Module, given: Any, output: Any) -> Any:
        """Add features to what a layer returns; the hook of one layer."""
        features = self.features[number]
        if features is None:
            return output
        if self.once:
            self.features[number] = None
        hidden = output[0] if isinstance(output, tuple) else output
        if len(hidden) != len(features):  # a search with beams has several rows for every prompt
            features = features.repeat_interleave(len(hidden) // len(features), 0)
        hidden = hidden + features.to(hidden)  # layers may be on several devices
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def refuse_missing_layers(count: int, layers: Sequence[int], name: str) -> None:
    """Refuse numbers of layers that a decoder of so many does not have, and its last: no layer would read the sum.

    Raises:
        UserError: naming the numbers that can be taken.
    """
    if wrong := [layer for layer in layers if layer >= count - 1]:
        has = (
            f"has {count} layers; use 0 to {count - 2}"
            if count > 1
            else "does not have at least two known layers"
        )
        raise UserError(f"adapter.depth.decoder_layers: {wrong[0]}, but {name} {has}")


def widen_rows(rows: Tensor, width: int) -> Tensor:
    """Return rows ``[T, D]`` with zeros behind them, ``[T, width]``."""
    return rows if rows.shape[-1] == width else F.pad(rows, (0, width - rows.shape[-1]))
