"""Rank, world size and sums over ranks; but for sharding, nothing else in the package touches ``torch.distributed``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor

from uniaudio.errors import LostProcessError, UserError
from uniaudio.launched_processes import ignore_sigterm

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


def raise_together(problem: str | None) -> None:
    """Let all ranks fail with the first problem that any of them has. Every rank must call it at the same point.

    Raises:
        UserError: on all ranks, when the sentence of one is neither None nor empty.
    """
    if sentence := next((text for text in gather_objects(problem) if text), None):
        raise UserError(sentence)


@contextlib.contextmanager
def refuse_together() -> Iterator[None]:
    """Let all ranks end with the mistake that one of them finds inside; all of them must enter.

    Raises:
        UserError: see ``raise_together``.
    """
    refusal = None
    try:
        yield
    except UserError as mistake:
        refusal = str(mistake)
    raise_together(refusal)


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
        ignore_sigterm()
        raise LostProcessError(
            f"process {rank()} lost another process of its run (killed, out of memory, or its "
            "machine is gone); continue from the last checkpoint with --resume"
        ) from problem


def open_launch_store(address: str, port: int, patience: float) -> Any:
    """Return a connection of its own to the key-value store of the launcher, which machine 0 of a launch keeps.

    Calls wait for the answer, for ever where the network is cut.

    Args:
        patience: seconds to wait for the store to come into being.

    Raises:
        RuntimeError: when the store is not there, or gone; so do its methods.
    """
    limit = timedelta(seconds=patience)
    return dist.TCPStore(  # type: ignore[attr-defined]
        address, port, is_master=False, timeout=limit, wait_for_workers=False
    )


def read_store(store: Any, keys: Sequence[str]) -> list[str] | None:
    """Return the values of keys in a store; None where one of them has none yet."""
    return [value.decode() for value in store.multi_get(list(keys))] if store.check(list(keys)) else None
