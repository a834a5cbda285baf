"""Time on a device by its own events, peak memory, and the clock that the whole table has to keep to."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

Result = TypeVar("Result")


@dataclass
class Clock:
    """How much of the allowed time is left."""

    seconds: float
    started: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        return self.seconds - self.used


@dataclass(frozen=True)
class Setting:
    """Where and how the table is measured.

    Args:
        encoder, decoders: names of ``sizes.py``; the first decoder is the one of the curve.
        budget: seconds of audio in a micro-batch. lengths: of clips, in seconds, for the curve.
        precision: of autocast, as in a run with ``precision: bf16``; None is float32.
        weights: dtype of the frozen decoder. warm_up, runs: steps that do not count, and those whose fastest does.
    """

    device: torch.device
    encoder: str
    decoders: tuple[str, ...]
    budget: float
    lengths: tuple[float, ...]
    precision: torch.dtype | None
    weights: torch.dtype
    warm_up: int
    runs: int
    clock: Clock

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def fastest(action: Callable[[], Any], setting: Setting, calls: int = 1) -> float:
    """Return the seconds of one call: warm up, time ``calls`` calls some times, take the least.

    CUDA events time the device; on a CPU it is the wall clock. Warm-up ends early when the clock is running out.
    """
    for _ in range(setting.warm_up):
        action()
        settle(setting.device)
        if setting.clock.left < 0:
            break
    times = []
    for _ in range(setting.runs):
        started = time.perf_counter()
        if setting.cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
        for _ in range(calls):
            action()
        if setting.cuda:
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000 / calls)
        else:
            times.append((time.perf_counter() - started) / calls)
    return min(times)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give back what nobody holds, and begin a new count of the peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Return the most that tensors took since ``free``, in GiB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None


def first_that_fits(
    sizes: Sequence[int], action: Callable[[int], Result], device: torch.device
) -> tuple[int, Result]:
    """Return the first size whose action does not run out of memory, and what it returned.

    Raises:
        torch.OutOfMemoryError: when none does.
    """
    for size in sizes[:-1]:
        try:
            return size, action(size)
        except torch.OutOfMemoryError:
            pass  # memory is given back below, after the traceback has let go of the tensors
        free(device)
    return sizes[-1], action(sizes[-1])
