"""FSDP2: every parameter spread over the ranks; the decoder's layers are put together one at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from uniaudio.distributed import world_size
from uniaudio.model.depth_injection import find_stock_layers
from uniaudio.train.engines.base import Engine, Whole

# of the model, beside its forward, that need whole parameters
METHODS = ("read_prompts", "generate_ids", "label_log_likelihoods")


class Fsdp2Engine(Engine):
    """torch's ``fully_shard``: one group for each layer of the decoder, one for all the rest.

    The encoder belongs to the rest, whose parameters are whole during a step: its layers are called piece by piece.

    Args:
        reshard: let go of a layer's parameters after its forward, and gather them again for its backward.
        offload: keep parameters and optimizer on the CPU between steps.
    """

    name = "fsdp2"
    whole = False
    gathers = True

    def __init__(
        self,
        plain: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: torch.dtype | None,
        reshard: bool = True,
        offload: bool = False,
    ) -> None:
        super().__init__(plain, optimizer, precision)
        names = {id(parameter): name for name, parameter in plain.named_parameters()}
        places = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        mesh = init_device_mesh("cuda" if torch.cuda.is_available() else "cpu", (world_size(),))
        policy = CPUOffloadPolicy() if offload else OffloadPolicy()
        decoder = getattr(plain, "decoder", None)
        for layer in find_stock_layers(getattr(decoder, "lm", None)):
            fully_shard(layer, mesh=mesh, reshard_after_forward=reshard, offload_policy=policy)
        root: Any = fully_shard(plain, mesh=mesh, reshard_after_forward=False, offload_policy=policy)
        # a parameter without a gradient on one rank alone would else give the ranks buffers of different sizes
        root.set_reduce_scatter_unused_params(True)
        for method in METHODS:
            if hasattr(plain, method):
                register_fsdp_forward_method(plain, method)
        sharded = dict(plain.named_parameters())
        for group, held in zip(optimizer.param_groups, places, strict=True):
            group["params"] = [sharded[name] for name in held]

    def exchange(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        model: Any = self.plain
        model.set_requires_gradient_sync(last)
        return contextlib.nullcontext()

    def clip_gradients(self, max_norm: float) -> Tensor:
        norm = super().clip_gradients(max_norm)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm

    def list_trained(self) -> Iterator[Whole]:
        for part in self.plain.modules():  # after an evaluation some are whole still: not those of AdamW
            if isinstance(part, FSDPModule):
                part.reshard()
        return super().list_trained()

    def full(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def spread(self, tensor: Tensor, parameter: Tensor) -> Tensor:
        assert isinstance(parameter, DTensor)
        return distribute_tensor(tensor.to(parameter.device), parameter.device_mesh, parameter.placements)
