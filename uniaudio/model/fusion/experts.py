"""Sparse experts over packed frames: each runs on the frames that chose it and on no others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

SMALL_ROUTER = 0.1  # of a router's usual start, where all experts begin as the same map


def run_experts(
    experts: Sequence[nn.Module], frames: Tensor, chosen: Tensor, weights: Tensor, width: int
) -> Tensor:
    """Return ``sum_k weights[t, k] f_chosen[t, k](frames[t])`` as ``[A, width]``.

    Pairs of frame and expert are sorted by expert, so every expert sees one block of rows. An expert without
    rows still runs, on none: its parameters get a gradient of zero, which data parallelism needs on every rank.

    Args:
        frames: ``[A, E]``. chosen: ``[A, k]`` int64 indices of experts. weights: ``[A, k]``.
    """
    slots = chosen.shape[1]
    order = chosen.flatten().argsort(stable=True)
    counts = chosen.flatten().bincount(minlength=len(experts)).tolist()
    rows = torch.div(order, slots, rounding_mode="floor")
    blocks = frames[rows].split(counts)
    outputs = torch.cat([expert(block) for expert, block in zip(experts, blocks, strict=True)])
    outputs = outputs * weights.flatten()[order][:, None].to(outputs.dtype)
    return outputs.new_zeros(len(frames), width).index_add(0, rows, outputs)
