"""Next-token loss through a frozen head, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


class FrozenHeadCrossEntropy(torch.autograd.Function):
    """Cross-entropy whose gradient is made in the forward, chunk by chunk.

    The head gets no gradient, so a chunk of logits is needed once: softmax minus one-hot, times the head, is the
    gradient of the hidden states, and the chunk can go. Memory is ``chunk * V`` instead of ``L * V``.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses, right = [], []
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(labels), chunk):
            rows, ids = hidden[start : start + chunk], labels[start : start + chunk]
            logits = F.linear(rows.to(weight.dtype), weight, bias)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            right.append(logits.argmax(-1) == ids)
            log_probabilities = logits.log_softmax(-1)
            losses.append(-log_probabilities.gather(1, ids[:, None])[:, 0])
            if gradient is not None:
                slope = log_probabilities.exp_()
                slope.scatter_add_(1, ids[:, None], slope.new_full((len(ids), 1), -1.0))
                gradient[start : start + chunk] = slope.to(weight.dtype) @ weight
        ctx.gradient = gradient
        per_token = torch.cat(losses) if losses else hidden.new_zeros(0, dtype=torch.float32)
        correct = torch.cat(right) if right else torch.zeros(0, dtype=torch.bool, device=hidden.device)
        ctx.mark_non_differentiable(per_token, correct)
        return per_token.sum(), per_token, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        if ctx.gradient is None:
            return None, None, None, None, None
        return ctx.gradient * gradients[0].to(ctx.gradient.dtype), None, None, None, None


def frozen_head_cross_entropy(
    hidden: Float[Tensor, "L D"],
    weight: Float[Tensor, "V D"],
    bias: Float[Tensor, " V"] | None,
    labels: Int[Tensor, " L"],
    chunk: int = 2048,
) -> tuple[Float[Tensor, ""], Float[Tensor, " L"], Bool[Tensor, " L"]]:
    """Return the summed loss (with gradient to ``hidden``), the loss of every token and whether it was predicted.

    Logits are taken to float32 before the softmax, ``chunk`` rows at a time.
    """
    return FrozenHeadCrossEntropy.apply(hidden, weight, bias, labels, chunk)
