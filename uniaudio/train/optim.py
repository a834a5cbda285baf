"""AdamW with a learning rate per component, and the schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from uniaudio.config.run import RunConfig, Stage
from uniaudio.errors import UserError


def learning_rates(config: RunConfig) -> dict[str, float]:
    """Return the peak learning rate of each trained component: the encoder by its own name, and the adapter."""
    (name, encoder), *_ = config.encoders.items()
    trained = {name: encoder.lr} if encoder.train == "full" else {}
    return {**trained, "adapter": config.adapter.lr}


def component_modules(model: nn.Module, config: RunConfig) -> Mapping[str, nn.Module]:
    """Return the modules behind the names of ``learning_rates``."""
    name = next(iter(config.encoders))
    return {name: model.get_submodule("encoder"), "adapter": model.get_submodule("adapter")}


def build_optimizer(model: nn.Module, config: RunConfig, device: torch.device) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov and Hutter 2019) over everything that takes a gradient.

    One-dimensional parameters (biases, norms) are not decayed. Fused on CUDA.

    Raises:
        UserError: when nothing is trained.
    """
    groups = []
    modules = component_modules(model, config)
    for component, lr in learning_rates(config).items():
        trained = [p for p in modules[component].parameters() if p.requires_grad]
        for decay, members in (
            (config.train.weight_decay, [p for p in trained if p.dim() > 1]),
            (0.0, [p for p in trained if p.dim() <= 1]),
        ):
            if members:
                groups.append(
                    {
                        "params": members,
                        "lr": lr,
                        "peak_lr": lr,
                        "weight_decay": decay,
                        "component": component,
                    }
                )
    if not groups:
        raise UserError("nothing is trained: set `train: full` for an encoder")
    return torch.optim.AdamW(groups, betas=config.train.betas, fused=device.type == "cuda")


def lr_share(step: int, stage: Stage, steps: int) -> float:
    """Return the share of the peak learning rate at a step of a stage (0-based) of ``steps`` steps.

    Linear warm-up, then half a cosine down to ``final_lr_share``, or constant.
    """
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    if stage.schedule == "constant":
        return 1.0
    progress = (step - stage.warmup) / max(steps - stage.warmup, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return stage.final_lr_share + (1 - stage.final_lr_share) * cosine


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to its share of the peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
