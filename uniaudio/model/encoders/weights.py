"""Weights of a checkpoint: read from safetensors alone and loaded strictly, or drawn at random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn

from uniaudio.errors import UserError, read_first_line
from uniaudio.model.model_files import refuse_unusable_files

Module = TypeVar("Module", bound=nn.Module)


def read_tensors(folder: Path, prefixes: Sequence[str], required: bool = False) -> dict[str, Tensor]:
    """Read only the tensors under one prefix from the safetensors files of a folder, names without the prefix.

    Args:
        prefixes: where full and part checkpoints keep the part, the longest first; "" stands for the whole file.
        required: whether tensors under none of them are those of something else.

    Raises:
        UserError: when there is no safetensors file, or no tensor under a prefix that is required.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        refuse_unusable_files(str(folder), "weights")
        raise UserError(f"{folder} holds no .safetensors file; convert the checkpoint to safetensors first")
    places: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            places.update(dict.fromkeys(tensors.keys(), file))
    prefix = next((p for p in prefixes if not p or any(name.startswith(p) for name in places)), None)
    if prefix is None and required:
        raise UserError(
            f"{folder} contains no tensors under {prefixes[0].rstrip('.')}; name a folder with all "
            "weights of the model"
        )
    prefix = prefix or ""
    selected = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (safe_open is not a dict)
                if name.startswith(prefix):
                    selected[name.removeprefix(prefix)] = tensors.get_tensor(name)
    return selected


def fill(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Load strictly, and say which tensors do not fit.

    Raises:
        UserError: naming missing and unknown tensors, or one of another shape.
    """
    expected = module.state_dict()
    missing, unknown = sorted(set(expected) - set(tensors)), sorted(set(tensors) - set(expected))
    if missing or unknown:
        raise UserError(
            f"{folder}: the encoder's tensors do not fit: "
            f"missing {missing[:3] or 'none'}, unknown {unknown[:3] or 'none'}"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape and name == "conv1.weight":
            raise UserError(
                f"{folder}: its weights take {tensor.shape[1]} mel bins, but its config.json says "
                f"{expected[name].shape[1]}"
            )
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{folder}: {name} is {tuple(tensor.shape)}, but its config.json says {tuple(expected[name].shape)}"
            )
    module.load_state_dict(dict(tensors))


def build_with_random_weights(make: Callable[[], Module], seed: int | None) -> Module:
    """Build a module whose weights are a function of ``seed`` (None: whatever they are, they will be overwritten).

    The run's own random generator is left where it was.
    """
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        return make()


def load_pretrained(kind: type[Any], folder: Path, seed: int | None, config: Any, **settings: Any) -> Any:
    """Load a stock model class in float32 from a folder, every tensor of it, or with random weights.

    Args:
        kind: a ``PreTrainedModel`` class. config: its configuration, changed as the caller needs it.
        seed: None loads the folder's safetensors; a number draws the weights from it.
        settings: passed on to ``from_pretrained``.

    Raises:
        UserError: when a tensor of the model is missing in the folder or the files cannot be read.
    """
    if seed is not None:
        return build_with_random_weights(lambda: kind(config), seed).float()
    try:
        with torch.random.fork_rng(devices=[]):  # loading weights must not move the run's generator
            model, report = kind.from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
                **settings,
            )
    except (OSError, ValueError, RuntimeError) as problem:
        raise UserError(
            f"{folder} cannot be loaded as {kind.__name__} ({read_first_line(problem)})"
        ) from problem
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"{folder}: tensors of {kind.__name__} are missing: {missing[:3]}")
    return model
