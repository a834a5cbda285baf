"""Low-rank updates of chosen linear maps, through peft, and their merge."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from uniaudio.errors import UserError

SEPARATE = (
    *("q_proj", "k_proj", "v_proj"),
    *("query", "key", "value"),
    *("linear_q", "linear_k", "linear_v"),
    *("query_proj", "key_proj", "value_proj"),
    "to_q",
)
CLIPPED = ".linear"  # of a map inside of one that bounds its values
QKV = (
    *SEPARATE,
    "to_kv",
    "qkv",
    "qkv_proj",
    "query_key_value",
    "c_attn",
    "Wqkv",
)  # the latter make all three at once
READ_BY_KERNELS = ("x_proj", "dt_proj", "out_proj")
LINEAR = (nn.Linear, Conv1D)  # GPT-2's Conv1D is a linear map with its weight the other way round


def find_lora_targets(module: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Return the full names of the linear maps that ``targets`` means.

    Args:
        targets: ``qkv`` (projections of attention, whatever the architecture calls them), ``all`` (but those whose
            weights are read by kernels), or regular expressions that are searched for in the full names.

    Raises:
        UserError: when a target matches nothing, with the names there are.
    """
    parts = dict(module.named_modules())
    linear = [
        name
        for name, part in parts.items()
        if isinstance(part, LINEAR) and not is_read_by_kernels(name, parts[name.rpartition(".")[0]])
    ]
    if targets == "all" and linear:
        return linear
    if targets in ("all", "qkv") and not linear:
        raise UserError(
            f"lora.targets: '{targets}' matches no linear layer; {type(module).__name__} has none; "
            "set train to frozen or full"
        )
    if targets == "qkv":
        matches = [name for name in linear if name.removesuffix(CLIPPED).rsplit(".", 1)[-1] in QKV]
        missing = [] if matches else ["qkv"]
    else:
        matches = [name for name in linear if any(re.search(target, name) for target in targets)]
        missing = [target for target in targets if not any(re.search(target, name) for name in linear)]
    if missing:
        known = sorted({name.rsplit(".", 1)[-1] for name in linear})
        raise UserError(
            f"lora.targets: '{missing[0]}' matches no linear layer; there are {', '.join(known) or 'none'}"
        )
    return matches


def is_read_by_kernels(name: str, parent: nn.Module) -> bool:
    """Return whether the kernels of a Mamba layer take the weight of a linear map without calling it.

    Updates beside it would be left out wherever these kernels run.

    Args:
        name: full name of the map. parent: the module that holds it.
    """
    is_mamba = hasattr(parent, "conv1d") and hasattr(parent, "D")  # the convolution and the skip connection
    return is_mamba and name.rsplit(".", 1)[-1] in READ_BY_KERNELS


def add_lora(
    module: nn.Module,
    rank: int,
    alpha: float,
    dropout: float,
    targets: str | Sequence[str],
    seed: int = 0,
) -> None:
    """Add trainable ``alpha / rank B A`` beside the chosen linear maps (Hu et al. 2022, eq. 3); all else is frozen.

    ``B`` starts at 0, so nothing changes at first; ``A`` is a function of ``seed``.

    Raises:
        UserError: when a target matches nothing.
    """
    insert_lora(module, find_lora_targets(module, targets), rank, alpha, dropout, seed)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_("lora_" in name)


def insert_lora(
    module: nn.Module, names: Sequence[str], rank: int, alpha: float, dropout: float, seed: int
) -> None:
    """Put low-rank updates beside the linear maps of these full names."""
    exactly = "|".join(re.escape(name) for name in names)  # names in a list would also match as endings
    settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=exactly)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # a later stage puts updates beside more maps of the same model
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute in the model")
        torch.manual_seed(seed)
        inject_adapter_in_model(settings, module)


def list_lora_modules(module: nn.Module) -> list[str]:
    """Return the full names of the linear maps that have low-rank updates."""
    return [name for name, part in module.named_modules() if isinstance(part, LoraLayer)]


def merge_lora(module: nn.Module, names: Collection[str] | None = None) -> None:
    """Add low-rank updates to their weights, and put the plain linear maps back in their places.

    Args:
        names: of the linear maps; None: all.
    """
    for name, part in list(module.named_modules()):
        if isinstance(part, LoraLayer) and (names is None or name in names):
            part.merge(safe_merge=not next(part.parameters()).is_meta)
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, part.get_base_layer())


def strip_lora_name(parameter: str) -> str:
    """Return the name that a parameter has without low-rank updates beside it."""
    return parameter.replace(".base_layer.", ".")
