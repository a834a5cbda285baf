"""Data parallelism: every rank has the whole model and averages gradients with the others."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from uniaudio.train.engines.base import Engine


class DdpEngine(Engine):
    """torch's DistributedDataParallel; frozen parameters take no part in the exchange."""

    name = "ddp"

    def __init__(
        self, plain: nn.Module, optimizer: torch.optim.Optimizer, precision: torch.dtype | None
    ) -> None:
        super().__init__(plain, optimizer, precision)
        device = next(plain.parameters()).device
        self.parallel = DistributedDataParallel(
            plain,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            broadcast_buffers=False,
            init_sync=False,  # every rank has read or drawn the same weights
        )
        self.called = self.parallel

    def exchange(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if last else self.parallel.no_sync()
