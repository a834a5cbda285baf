"""The process group and the engine that the launch file asks for."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn

from uniaudio.config.run import RunConfig
from uniaudio.console import silence_known_warnings
from uniaudio.errors import UserError
from uniaudio.model.compile import refuse_without_compiler
from uniaudio.train.engines.base import Engine
from uniaudio.train.engines.conflicts import refuse_conflicts, refuse_deepspeed_conflicts, refuse_uneven_calls
from uniaudio.train.engines.ddp import DdpEngine
from uniaudio.train.engines.fsdp2 import Fsdp2Engine
from uniaudio.train.engines.precision import choose_precision
from uniaudio.train.engines.zero import ZeroEngine

PATIENCE = timedelta(hours=2)  # of an exchange: the others wait while the main process evaluates


def make_accelerator(config: RunConfig) -> Accelerator:
    """Start accelerate as the launch file says; the run config owns precision, clipping and accumulation.

    Raises:
        UserError: when launch file and run config want different things, or layers cannot be compiled.
    """
    cuda = torch.cuda.is_available()
    refuse_conflicts(config)
    handlers: list[Any] = []
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # alone, accelerate would look for a group
        handlers.append(InitProcessGroupKwargs(backend="nccl" if cuda else "gloo", timeout=PATIENCE))
    spread_by_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    silence_known_warnings()
    if spread_by_deepspeed and not cuda:
        disable_shm_extension()
    # with `cpu` accelerate would drop DeepSpeed without a word
    alone = not cuda and not spread_by_deepspeed
    accelerator = Accelerator(mixed_precision="no", cpu=alone, kwargs_handlers=handlers)
    if accelerator.gradient_accumulation_steps != 1:  # somebody would divide every loss by it once more
        raise UserError(
            f"accelerate was launched with gradient_accumulation_steps {accelerator.gradient_accumulation_steps}, "
            f"but train.micro_batches is {config.train.micro_batches or accelerator.num_processes}; "
            "leave the accumulation to the run config"
        )
    micro_batches = config.train.micro_batches
    if micro_batches is not None and micro_batches % accelerator.num_processes:
        raise UserError(
            f"train.micro_batches is {micro_batches}, but it must be a multiple of the "
            f"{accelerator.num_processes} processes that were launched"
        )
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config  # brings DeepSpeed along

        unset_hf_deepspeed_config()  # models are loaded whole and tried out before they are spread
        refuse_deepspeed_conflicts(plugin.deepspeed_config, config)
    if config.train.compile:
        refuse_to_compile(accelerator)
    return accelerator


def disable_shm_extension() -> None:
    """Keep DeepSpeed from compiling its exchange through shared memory, which is for inference on one CPU machine.

    On CPUs it would compile it in every process group, which takes a minute, needs a compiler, and waits for ever for a
    process that was killed while it compiled. Training exchanges through the process group.
    """
    import deepspeed  # seconds to import, and only some runs want it

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def forget_launch() -> None:
    """Let accelerate forget how it was started: the next training or evaluation of this process starts it anew."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def refuse_to_compile(accelerator: Accelerator) -> None:
    """Refuse ``train.compile`` where it cannot be had.

    Raises:
        UserError: with the fix.
    """
    if name_spreading_engine(accelerator) == "zero3":
        raise UserError(
            "train.compile: zero3 gathers every linear layer separately, which leaves nothing to "
            "compile; launch with configs/accelerate/ddp.yaml, zero1.yaml, zero2.yaml or "
            "fsdp2.yaml, or leave it out"
        )
    refuse_without_compiler(accelerator.device)


def choose_building_device(accelerator: Accelerator) -> torch.device:
    """Return where a model is put together: on the CPU where its weights will be spread, for they may fit no device."""
    return torch.device("cpu") if name_spreading_engine(accelerator) else accelerator.device


def name_spreading_engine(accelerator: Accelerator) -> str:
    """Return the name of the engine that was launched if no rank will have the whole model, else an empty text."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        return "zero3" if plugin.zero_stage == 3 else ""
    fsdp = os.environ.get("ACCELERATE_USE_FSDP") == "true" and accelerator.num_processes > 1
    return "fsdp2" if fsdp else ""


def make_engine(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, config: RunConfig
) -> Engine:
    """Put a model and its optimizer into the engine that was launched.

    Raises:
        UserError: when an encoder does not work under it.
    """
    if accelerator.num_processes > 1:
        refuse_uneven_calls(model, name_spreading_engine(accelerator))
    precision = choose_precision(config)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        if precision is not None:
            autocast_inside(model, precision)
        return ZeroEngine(model, optimizer, precision, plugin.deepspeed_config, config.train.clip)
    if accelerator.num_processes == 1:
        return Engine(model, optimizer, precision)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() != "false"
        offload = os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true"
        return Fsdp2Engine(model, optimizer, precision, reshard, offload)
    return DdpEngine(model, optimizer, precision)


def autocast_inside(model: nn.Module, precision: torch.dtype) -> None:
    """Let a model's forward run under autocast by itself: DeepSpeed switches off what is around its call."""
    inner = model.forward

    def forward(*given: Any) -> Any:
        with torch.autocast(next(model.parameters()).device.type, precision):
            return inner(*given)

    model.forward = forward
