"""Tensors on disk that can be made again: files that appear whole, and the content of a model as their key."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from uniaudio import __version__

PLAIN = (bool, int, float, str, tuple, type(None))
# what a module knows that does not change what it computes
NOT_ITS_OWN = ("training", "name_or_path", "recomputes")


def hash_model(model: nn.Module) -> str:
    """Return a SHA-256 of what decides a model's output: classes, plain settings and weights; hexadecimal text.

    Neither its name nor its path counts, so that a copy shares the cache and another weight does not. The version of
    this package counts: its code may change what an encoder computes.
    """
    digest = hashlib.sha256(__version__.encode())
    for name, module in model.named_modules():
        settings = {
            key: value
            for key, value in sorted(vars(module).items())
            if isinstance(value, PLAIN) and key not in NOT_ITS_OWN
        }
        digest.update(f"{name}:{type(module).__qualname__}:{settings}\n".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_cached(file: Path) -> dict[str, Tensor] | None:
    """Return what a file holds, or None where there is none that can be read: it is then made again."""
    try:
        return load_file(file)
    except (OSError, SafetensorError):
        return None


def write_cached(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors so that the file appears whole or not at all, whoever else writes the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{uuid.uuid4().hex}")
    # not by `save_file`, which lets nobody but its user read the file
    partial.write_bytes(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    partial.replace(file)
