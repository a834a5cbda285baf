"""What a stage trains: full, by low-rank updates or not at all; and what a checkpoint has to hold of it.

A model is brought to a stage by going through all stages up to it in order. So its structure is a function of the
config alone, and the tensors of a checkpoint find their places by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from uniaudio.config.encoders import LoraConfig
from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Mode, Stage
from uniaudio.errors import UserError
from uniaudio.model.lora import insert_lora, list_lora_modules, merge_lora, strip_lora_name

DECODER = "decoder."
LORA = "lora_"  # in the names of the factors of a low-rank update


@dataclass
class TrainableParameters:
    """What has become of a freshly built model.

    Args:
        usual: plain name of every parameter to how the components of the config train it.
        changed: plain names of the parameters that earlier stages may have changed.
    """

    usual: dict[str, Mode]
    changed: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, model: nn.Module) -> TrainableParameters:
        """Read the usual modes off a model as it was built."""
        low_rank = {f"{name}.weight" for name in list_lora_modules(model)}
        usual: dict[str, Mode] = {}
        for name, parameter in model.named_parameters():
            plain = strip_lora_name(name)
            if LORA not in name:
                usual[plain] = (
                    "lora" if plain in low_rank else "full" if parameter.requires_grad else "frozen"
                )
        return cls(usual)


def go_through_stages(
    model: nn.Module, config: RunConfig, last: int, whole: bool = True
) -> TrainableParameters:
    """Bring a freshly built model to stage ``last`` and return its structure.

    Args:
        whole: False for a part of the model, such as its encoder alone: expressions may then match nothing.
    """
    structure = TrainableParameters.of(model)
    for index in range(last + 1):
        enter_stage(model, structure, config, index, whole)
    return structure


def enter_stage(
    model: nn.Module, structure: TrainableParameters, config: RunConfig, index: int, whole: bool = True
) -> None:
    """Bring a model from the stage before to stage ``index``: merge, insert and open what the config says.

    Raises:
        UserError: for an expression that matches nothing, and for parameters of a frozen decoder.
    """
    stage = config.stages[index]
    if index:  # what the stage before trained; before the first one nothing has changed yet
        structure.changed |= {
            strip_lora_name(name) for name, p in model.named_parameters() if p.requires_grad
        }
    modes = choose_modes(structure.usual, stage, whole)
    linear = {f"{name}.weight": name for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    beside = set(list_lora_modules(model))
    wanted = {
        strip_lora_name(name).removesuffix(".weight")
        for name in linear
        if modes.get(strip_lora_name(name)) == "lora"
    }
    merged = {
        name
        for name in beside
        if not name.startswith(DECODER) and (stage.merge_lora or modes[f"{name}.weight"] == "full")
    }
    merge_lora(model, merged)
    structure.changed |= {f"{name}.weight" for name in merged}
    new = sorted(wanted - (beside - merged))
    for lora, names in group_by_settings(new, config).items():
        # of a seed of its own: a new update beside a merged one begins in other directions than that one did
        insert_lora(model, names, lora.rank, lora.alpha, lora.dropout, config.seed + index)
    for name, parameter in model.named_parameters():
        owner = f"{name.split('.' + LORA)[0]}.weight" if LORA in name else strip_lora_name(name)
        parameter.requires_grad_(modes[owner] == ("lora" if LORA in name else "full"))


def choose_modes(usual: Mapping[str, Mode], stage: Stage, whole: bool) -> dict[str, Mode]:
    """Return how a stage trains every parameter, by plain name.

    Raises:
        UserError: as ``enter_stage``.
    """
    modes = dict(usual)
    for pattern, mode in stage.train.items():
        matched = [name for name in usual if re.search(pattern, name)]
        if whole:
            refuse_nothing(matched, usual, f"stages.{stage.name}.train", pattern)
        for name in matched:
            if name.startswith(DECODER) and mode != "frozen" and usual[name] != mode:
                raise UserError(
                    f"stages.{stage.name}.train: '{pattern}' matches {name}, but decoder.train says {usual[name]}; "
                    f"set decoder.train, or begin the expression with ^encoder or ^adapter"
                )
            modes[name] = mode
    return modes


def refuse_nothing(matched: Iterable[str], names: Iterable[str], where: str, pattern: str) -> None:
    """Refuse an expression that matches no parameter.

    Raises:
        UserError: with the beginnings of the names there are.
    """
    if not list(matched):
        beginnings = sorted({".".join(name.split(".")[:-1][:3]) for name in names})
        shown = ", ".join(beginnings[:12]) + (" ..." if len(beginnings) > 12 else "")
        raise UserError(f"{where}: '{pattern}' matches no parameter; their names begin with {shown}")


def explain_nothing_trained(stage: Stage) -> str:
    """Return why a stage has nothing to train, and what to set: an adapter is trained unless the stage freezes it."""
    frozen = ", ".join(f"'{pattern}'" for pattern, mode in stage.train.items() if mode == "frozen")
    return (
        f"stage {stage.name}: nothing is trained, because stages.{stage.name}.train sets {frozen} to frozen; end "
        "that mapping with the part to train, such as '^adapter': full, or leave it out"
    )


def group_by_settings(names: Iterable[str], config: RunConfig) -> dict[LoraConfig, list[str]]:
    """Group linear maps by the rank and scale of their new low-rank updates: their encoder's, or the first one's."""
    groups: dict[LoraConfig, list[str]] = {}
    first = next(iter(config.encoders.values())).lora
    for name in names:
        parts = name.split(".")
        settings = (
            config.encoders.get(parts[2]) if parts[:2] == ["encoder", "encoders"] and len(parts) > 2 else None
        )
        groups.setdefault(first if settings is None else settings.lora, []).append(name)
    return groups


def collect_tensors(model: nn.Module, structure: TrainableParameters) -> dict[str, Tensor]:
    """Return what a checkpoint holds: all that is trained now or may have been changed by earlier stages."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or LORA in name or strip_lora_name(name) in structure.changed
    }


def put_tensors(
    model: nn.Module, structure: TrainableParameters, given: Mapping[str, Tensor], whose: object
) -> None:
    """Copy the tensors of a checkpoint into a model of the same structure.

    Raises:
        UserError: when a tensor is missing, unknown or of another shape.
    """
    held = collect_tensors(model, structure)
    missing, unknown = sorted(set(held) - set(given)), sorted(set(given) - set(held))
    if missing or unknown:
        raise UserError(
            f"{whose}: the tensors are not those trained by the config: missing "
            f"{missing[:3] or 'none'}, unknown {unknown[:3] or 'none'}"
        )
    for name, parameter in held.items():
        if parameter.shape != given[name].shape:
            raise UserError(
                f"{whose}: {name} is {tuple(given[name].shape)}, but the config needs "
                f"{tuple(parameter.shape)}"
            )
        parameter.data.copy_(given[name])
