"""Data parallelism: every rank has the whole model and averages gradients with the others."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from uniaudio.train.engines.base import Engine


class DdpEngine(Engine):
    """torch's DistributedDataParallel; frozen parameters take no part in the exchange.

    The exchange ends when every trained parameter has a gradient of the last micro-batch. Those that it does not reach
    on a rank (such as parts of a user's own encoder that depend on the clips) get a gradient of zero from it. torch's
    ``find_unused_parameters`` would search the graph in every step, and cannot tell of penalties on the weights.
    """

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
        self.exchanges = True
        self.trained = [parameter for parameter in plain.parameters() if parameter.requires_grad]
        self.reached = set[int]()  # identities of those that the backward under way has reached
        reached = self.reached  # a hook that held the engine would keep the model in memory for ever

        def note(parameter: Tensor) -> None:
            reached.add(id(parameter))

        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(note)

    def exchange(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        self.exchanges = last
        return contextlib.nullcontext() if last else self.parallel.no_sync()

    def backward(self, objective: Tensor) -> None:
        self.reached.clear()
        super().backward(objective)
        if not self.exchanges:
            return
        if left_out := [parameter for parameter in self.trained if id(parameter) not in self.reached]:
            torch.autograd.backward(left_out, [torch.zeros_like(parameter) for parameter in left_out])
