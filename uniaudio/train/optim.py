"""AdamW with learning rates by component, expression and layer, and the schedule."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import nn

from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Stage
from uniaudio.errors import UserError
from uniaudio.model.lora import strip_lora_name
from uniaudio.train.trainable import explain_nothing_trained, refuse_nothing

# not the convolutions before the layers, nor the adapter behind them, of conformers
LAYER = re.compile(r"(?<!subsampling)(?<!adapter)\.(?:layers?|blocks|h|encoders|conformer)\.(\d+)\.")

# classes of transformers; the first ending is that of wav2vec 2.0, HuBERT, WavLM and UniSpeech
NORMED_BEHIND = ("EncoderStableLayerNorm", "Wav2Vec2ConformerEncoder")


def list_learning_rates(config: RunConfig) -> dict[str, float]:
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


@dataclass(frozen=True)
class Rate:
    """The peak learning rate of a parameter, and the name under which metrics tell of it."""

    name: str
    lr: float


def compute_parameter_rates(model: nn.Module, config: RunConfig, stage: Stage) -> dict[str, Rate]:
    """Return the rate of every trained parameter of a stage by its name.

    Raises:
        UserError: for an expression of ``lr`` that matches no trained parameter.
    """
    usual = list_learning_rates(config)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    rates = {name: Rate(component_of(name, config), usual[component_of(name, config)]) for name in names}
    for pattern, lr in stage.lr.items():
        matched = [name for name in names if re.search(pattern, strip_lora_name(name))]
        refuse_nothing(matched, names, f"stages.{stage.name}.lr", pattern)
        rates |= {name: Rate(f"{component_of(name, config)}[{pattern}]", lr) for name in matched}
    if stage.layer_decay == 1.0:
        return rates
    below = count_layers_above(model, config)
    for name, rate in rates.items():
        if name in below:
            depth = below[name]
            rates[name] = Rate(
                f"{rate.name}-{depth}" if depth else rate.name, rate.lr * stage.layer_decay**depth
            )
    return rates


def count_layers_above(model: nn.Module, config: RunConfig) -> dict[str, int]:
    """Return for every parameter of an encoder how many layers lie above it (Clark et al. 2020, layer-wise rates).

    What comes before the layers (convolutions, positions) is one below the first of them; what comes after them
    (the last norm) is no layer below.
    """
    depths: dict[str, int] = {}
    last_norms = find_norms_behind_layers(model)
    parts: dict[str, list[str]] = {}
    for name, _ in model.named_parameters():
        component = component_of(name, config)
        if component in config.encoders:
            parts.setdefault(component, []).append(name)
    for names in parts.values():
        number = {name: int(match[1]) for name in names if (match := LAYER.search(name))}
        last = max(number.values(), default=-1)
        begun = False
        for name in names:
            begun = begun or name in number
            is_behind = begun or name in last_norms
            depths[name] = last - number[name] if name in number else 0 if is_behind else last + 1
    return depths


def find_norms_behind_layers(model: nn.Module) -> set[str]:
    """Return the parameters of norms that stock encoders list before their layers and apply behind them."""
    return {
        f"{name}.layer_norm.{parameter}"
        for name, module in model.named_modules()
        if type(module).__name__.endswith(NORMED_BEHIND)
        for parameter, _ in module.get_submodule("layer_norm").named_parameters()
    }


def build_optimizer(
    model: nn.Module, config: RunConfig, stage: Stage, device: torch.device
) -> torch.optim.AdamW:
    """Build AdamW (Loshchilov and Hutter 2019) over everything that takes a gradient.

    One-dimensional parameters (biases, norms) are not decayed. Fused on CUDA.

    Raises:
        UserError: when nothing is trained, or an expression of ``lr`` matches nothing.
    """
    rates = compute_parameter_rates(model, config, stage)
    members: dict[tuple[Rate, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if name in rates:
            decay = config.train.weight_decay if parameter.dim() > 1 else 0.0
            members.setdefault((rates[name], decay), []).append(parameter)
    if not members:
        raise UserError(explain_nothing_trained(stage))
    groups = [
        {
            "params": parameters,
            "lr": rate.lr,
            "peak_lr": rate.lr,
            "weight_decay": decay,
            "component": rate.name,
        }
        for (rate, decay), parameters in members.items()
    ]
    return torch.optim.AdamW(groups, betas=config.train.betas, fused=device.type == "cuda")


def compute_lr_share(stage: Stage, step: int, steps: int | None, done: float) -> float:
    """Return the share of the peak learning rate at a step of a stage (0-based).

    Linear warm-up, then half a cosine or a line down to ``final_lr_share``, or constant.

    Args:
        steps: of the stage; None where hours of audio end it, so that their share ``done`` moves the decay. With
            both, the one that will end the stage first does.
    """
    rise = (step + 1) / stage.warmup if step < stage.warmup else 1.0
    if stage.schedule == "constant":
        return rise
    if steps is not None:
        if step < stage.warmup:
            return rise
        done = max(done, (step - stage.warmup) / max(steps - stage.warmup, 1))
    done = min(done, 1.0)
    left = 1 - done if stage.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return rise * (stage.final_lr_share + (1 - stage.final_lr_share) * left)


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to its share of the peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share
