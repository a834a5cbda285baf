"""The GPUs that an estimate is for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind: their number, GiB of each, TFLOP/s in a large product, and the share of it in training."""

    gpus: int = 8
    memory_gib: float = 80.0
    tflops: float = 794.5
    efficiency: float = 0.4

    @property
    def flops(self) -> float:
        """Operations a second of one GPU in training."""
        return self.tflops * 1e12 * self.efficiency
