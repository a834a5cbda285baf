"""The accelerator, and the one place where sums are turned into the right gradient."""

from __future__ import annotations

import os

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def make_accelerator(config: RunConfig) -> Accelerator:
    """Start accelerate as the launch file says; the run config owns the precision.

    Raises:
        UserError: when launch file and run config want different things, or the engine is not one of ours.
    """
    cuda = torch.cuda.is_available()
    wanted = config.train.precision if config.train.precision != "auto" else ("bf16" if cuda else "no")
    launched = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if launched not in ("no", wanted):
        raise UserError(
            f"the accelerate file says mixed_precision {launched}, but train.precision is {wanted}; "
            "leave the precision to the run config"
        )
    handlers = [DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)]
    if not cuda and int(os.environ.get("WORLD_SIZE", "1")) > 1:  # alone, accelerate would look for a group
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    accelerator = Accelerator(mixed_precision=wanted, cpu=not cuda, kwargs_handlers=handlers)
    if accelerator.distributed_type not in SUPPORTED:
        raise UserError(
            f"the engine {accelerator.distributed_type.value} is not supported yet; "
            "launch with configs/accelerate/single.yaml or ddp.yaml"
        )
    micro_batches = config.train.micro_batches
    if accelerator.gradient_accumulation_steps != 1:  # accelerate would divide every loss by it once more
        raise UserError(
            f"accelerate was launched with gradient_accumulation_steps {accelerator.gradient_accumulation_steps}, "
            f"but train.micro_batches is {micro_batches or accelerator.num_processes}; "
            "leave the accumulation to the run config"
        )
    if micro_batches is not None and micro_batches % accelerator.num_processes:
        raise UserError(
            f"train.micro_batches is {micro_batches}, but it must be a multiple of the "
            f"{accelerator.num_processes} processes that were launched"
        )
    return accelerator


def backward_scale(world_size: int, answer_tokens: float) -> float:
    """Return the factor on a loss sum that gives the gradient of the mean over the global batch.

    Data parallelism averages gradients over ranks, so a rank's sum is multiplied by their number and divided by the
    answer tokens of all micro-batches of all ranks. Nothing else divides: accelerate is told of no accumulation.
    """
    return world_size / max(answer_tokens, 1.0)
