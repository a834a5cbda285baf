"""Rank, world size and sums over ranks; but for sharding, nothing else in the package touches ``torch.distributed``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch.distributed as dist
from torch import Tensor

from uniaudio.errors import LostProcessError

GONE = ("connection closed by peer", "connection reset", "broken pipe", "remote process exited")


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


def shutdown_process_group() -> None:
    """End the exchange between the ranks; every rank must call it at the same point, and none exchanges after it.

    Threads of an exchange that is not ended may still run while the interpreter is cleared away, and abort the process.
    """
    if is_distributed():
        dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def explain_lost_processes() -> Iterator[None]:
    """Turn an exchange that failed because a process is gone into a sentence.

    Raises:
        LostProcessError: naming this process; the launcher says which one was lost.
    """
    try:
        yield
    except RuntimeError as problem:
        if not is_distributed() or not any(sign in str(problem).lower() for sign in GONE):
            raise
        raise LostProcessError(
            f"process {rank()} lost another one of its run (killed, out of memory, or its machine is gone); "
            "continue from the last checkpoint with --resume"
        ) from problem
