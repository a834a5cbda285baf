"""Weights of a checkpoint: found by folder or Hub name, read from safetensors alone, loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from uniaudio.errors import UserError

RANDOM = "random:"  # prefix of a path: the same architecture with random weights
RANDOM_WEIGHTS = {"initialization": "random"}  # in the config.json of weights that nobody has trained
FILES = ["*.json", "*.safetensors"]
ADAPTER = "adapter_config.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")

Module = TypeVar("Module", bound=nn.Module)
ConfigClass = TypeVar("ConfigClass", bound=PretrainedConfig)


def find_model_folder(path: str, revision: str | None, patterns: Sequence[str] = FILES) -> Path:
    """Return a local folder: the path itself, or the files of a Hub repository in the local cache.

    Args:
        patterns: the files to fetch; code is not among them unless the caller asks for it.

    Raises:
        UserError: when it is neither.
    """
    if Path(path).is_dir():
        return Path(path)
    if path.count("/") > 1 or path.startswith((".", "/", "~")):
        raise UserError(f"there is no folder {path}")
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=list(patterns)))
    except (OSError, ValueError) as problem:
        reason = str(problem).splitlines()[0]
        raise UserError(
            f"{path} is neither a folder nor a model that could be fetched ({reason})"
        ) from problem


def read_model_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json`` as plain values.

    Raises:
        UserError: when there is none, or it names no model type.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as problem:
        raise UserError(f"{folder}: config.json cannot be read ({problem})") from problem
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(f"{folder}: config.json names no model_type")
    return config


def read_stock_config(
    path: Path | str, revision: str | None = None, trusted: bool = False
) -> PretrainedConfig:
    """Return the configuration of a model of transformers, without what its file says of attention.

    An implementation of attention that a file names may be a package or a kernel on the Hub, which would be fetched and
    run; transformers chooses among its own instead.

    Args:
        trusted: whether code that comes with the model may run.

    Raises:
        OSError, ValueError: as transformers does, also where code would be needed that is not trusted.
    """
    config: PretrainedConfig = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=trusted)
    return use_stock_attention(config)


def use_stock_attention(config: ConfigClass) -> ConfigClass:
    """Let transformers choose the code of attention and experts, in the configuration and those inside it."""
    config._attn_implementation = None
    config._experts_implementation = None
    return config


def refuse_unusable_files(path: str, where: str) -> None:
    """Refuse an adapter, and a folder or file whose weights are in no format that is read here.

    An adapter leads to a base model and to packages that somebody else chose; reading a pickle can run code.

    Raises:
        UserError: naming the file and the way out.
    """
    folder = Path(path)
    files = [folder.name] if not folder.is_dir() else sorted(file.name for file in folder.iterdir())
    if ADAPTER in files:
        raise UserError(
            f"{where}: {path} holds an adapter ({ADAPTER}); merge it into its base model, save that, and name its "
            "folder"
        )
    if any(name.endswith(".safetensors") for name in files):
        return
    if matches := [name for name in files if name.lower().endswith(".gguf")]:
        raise UserError(
            f"{where}: {path} holds its weights as GGUF ({matches[0]}), which is not read; name the folder of "
            "safetensors that it was made from"
        )
    if matches := [name for name in files if name.endswith(PICKLES)]:
        raise UserError(
            f"{where}: {path} holds its weights as {matches[0]}, a pickle, which can run code when it is read; "
            "convert it to safetensors first (see SECURITY.md)"
        )


def read_tensors(folder: Path, prefixes: Sequence[str]) -> dict[str, Tensor]:
    """Read only the tensors under one prefix from the safetensors files of a folder, names without the prefix.

    Args:
        prefixes: where full and part checkpoints keep the part, the longest first; "" stands for the whole file.

    Raises:
        UserError: when there is no safetensors file.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        refuse_unusable_files(str(folder), "weights")
        raise UserError(f"{folder} holds no .safetensors file; convert the checkpoint to safetensors first")
    places: dict[str, Path] = {}
    for file in files:
        with safe_open(file, "pt") as tensors:
            places.update(dict.fromkeys(tensors.keys(), file))
    prefix = next((p for p in prefixes if not p or any(name.startswith(p) for name in places)), "")
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
        reason = str(problem).strip().splitlines()[0]
        raise UserError(f"{folder} cannot be loaded as {kind.__name__} ({reason})") from problem
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"{folder}: tensors of {kind.__name__} are missing: {missing[:3]}")
    return model
