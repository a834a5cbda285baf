"""Rank, world size and sums over ranks; nothing else in the package touches ``torch.distributed``."""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def is_main() -> bool:
    return rank() == 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """The elementwise sum over all ranks, in a new tensor. Every rank must call it at the same point."""
    if not is_distributed():
        return values.clone()
    total = values.clone()
    dist.all_reduce(total)
    return total


def max_over_ranks(values: Tensor) -> Tensor:
    """The elementwise maximum over all ranks, in a new tensor."""
    highest = values.clone()
    if is_distributed():
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
    return highest


def gather_objects(value: Any) -> list[Any]:
    """One small picklable object of every rank, in rank order, on all ranks (peers of one job only)."""
    if not is_distributed():
        return [value]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def barrier() -> None:
    if is_distributed():
        dist.barrier()
