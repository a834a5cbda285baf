"""What engines and launch files cannot do together with a run config: refused with the engines that can."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Stage
from uniaudio.errors import UserError
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.train.engines.precision import refuse_other_precision


def refuse_conflicts(config: RunConfig) -> None:
    """Look at what the launch file set in the environment, before anything starts.

    Raises:
        UserError: naming both values.
    """
    launched = os.environ.pop("ACCELERATE_MIXED_PRECISION", "no")
    if launched != "no":  # which is also what a launch file without the key gives
        refuse_other_precision(launched, config)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "the accelerate file sets FSDP 1; set fsdp_version: 2, as configs/accelerate/fsdp2.yaml"
        )


def refuse_deepspeed_conflicts(settings: dict[str, Any], config: RunConfig) -> None:
    """Refuse keys of a DeepSpeed config that say otherwise than the run config.

    Raises:
        UserError: naming both values.
    """
    clip = settings.get("gradient_clipping", "auto")
    if clip not in ("auto", 0, config.train.clip):
        raise UserError(
            f"the DeepSpeed config says gradient_clipping {clip}, but train.clip is {config.train.clip}; "
            "set it to auto"
        )
    for key in ("bf16", "fp16"):
        if settings.get(key, {}).get("enabled") is True:
            raise UserError(
                f"the DeepSpeed config enables {key}, but train.precision is {config.train.precision}; "
                f"leave the precision to the run config"
            )
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise UserError(
                f"the DeepSpeed config sets {key}; learning rates and schedule belong to the run config"
            )


def refuse_what_shards_cannot(engine: str, stage: Stage, config: RunConfig) -> None:
    """Refuse what reads parameters between steps where no rank has them whole, and what leaves modules out.

    Args:
        engine: that spreads the weights, or an empty text.

    Raises:
        UserError: naming the engines that can.
    """
    cached = [name for name, encoder in config.encoders.items() if encoder.cache]
    if cached and engine == "zero3":
        raise UserError(
            f"encoders.{cached[0]}.cache skips an encoder for clips whose frames are stored, but "
            "under zero3 all processes must run every module together; launch with "
            "configs/accelerate/ddp.yaml or fsdp2.yaml"
        )
    ways = stage.continual
    methods = [name for name in ("l2sp", "ewc") if getattr(ways, name) is not None]
    if ways.ema is not None and engine == "zero3":
        methods.append("ema")
    if methods and engine:
        raise UserError(
            f"stages.{stage.name}.continual.{methods[0]} reads whole parameters, but {engine} "
            "shards them over the processes; launch with configs/accelerate/ddp.yaml, zero1.yaml "
            "or zero2.yaml"
        )


def refuse_uneven_calls(model: nn.Module, engine: str) -> None:
    """Refuse encoders that call their modules once for each clip, where every call gathers weights from all processes.

    Processes have different numbers of clips in a micro-batch, and would exchange the weights of different modules:
    gloo aborts then, and NCCL may wait forever.

    Args:
        engine: that spreads the weights, or an empty text.

    Raises:
        UserError: naming the engines that can.
    """
    if engine != "zero3":
        return
    for part in model.modules():
        if isinstance(part, AudioEncoder) and part.calls_by_clip:
            kind = type(part)
            is_known = kind.__module__.startswith("uniaudio.")
            hint = "" if is_known else ", or set calls_by_clip = False in the class if it does not"
            raise UserError(
                f"encoders: {kind.__name__} encodes one clip after the other, but under zero3 all processes must "
                "call every module equally often; launch with configs/accelerate/ddp.yaml, zero2.yaml or "
                f"fsdp2.yaml{hint}"
            )
