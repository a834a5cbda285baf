"""AdamW with a learning rate per component, and the schedule."""

from __future__ import annotations

import math

import torch
from torch import nn

from uniaudio.config.run import RunConfig, Stage
from uniaudio.errors import UserError


def learning_rates(config: RunConfig) -> dict[str, float]:
    """Return the peak learning rate of each component: the encoders by their names, fusion, adapter and decoder."""
    rates = {name: encoder.lr for name, encoder in config.encoders.items()}
    if config.fusion is not None:
        rates["fusion"] = config.fusion.lr
    return {**rates, "adapter": config.adapter.lr, "decoder": config.decoder.lr}


def component_of(parameter: str, config: RunConfig) -> str:
    """Return the component that a parameter of an ``AudioLM`` belongs to, by its full name."""
    part, *rest = parameter.split(".")
    if part != "encoder":
        return part
    if config.fusion is None:
        return next(iter(config.encoders))
    return rest[1] if rest[0] == "encoders" else "fusion"


def build_optimizer(model: nn.Module, config: RunConfig, device: torch.device) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov and Hutter 2019) over everything that takes a gradient.

    One-dimensional parameters (biases, norms) are not decayed. Fused on CUDA.

    Raises:
        UserError: when nothing is trained.
    """
    groups = []
    for component, lr in learning_rates(config).items():
        trained = [
            p
            for name, p in model.named_parameters()
            if p.requires_grad and component_of(name, config) == component
        ]
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
        raise UserError("nothing is trained: set `train: full` or `lora` for an encoder")
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
