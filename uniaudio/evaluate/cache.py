"""Embeddings on disk, under the content of what made them: the model, the clips and the way they were pooled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uniaudio import __version__
from uniaudio.config.files import cache_root

PLAIN = (bool, int, float, str, tuple, type(None))
NOT_ITS_OWN = ("training", "name_or_path")  # what a module knows that does not change what it computes


def model_digest(model: nn.Module) -> str:
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


def cache_file(model: str, data: str, pooling: str, layer: int | None) -> Path:
    """Return where embeddings lie: ``$UNIAUDIO_CACHE/embeddings/MODEL/NAME.safetensors``.

    Args:
        model, data: digests of the model and of the clips. pooling: what was done to the frames.
        layer: number of a hidden state, None for the frames themselves.
    """
    name = hashlib.sha256(f"{data}\n{pooling}\n{layer}".encode()).hexdigest()
    return cache_root() / "embeddings" / model[:16] / f"{name[:32]}.safetensors"


def read_cached(file: Path) -> dict[str, Tensor] | None:
    """Return what a file holds, or None where there is none that can be read: it is then made again."""
    if not file.is_file():
        return None
    try:
        return load_file(file)
    except SafetensorError:
        return None


def write_cached(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors so that the file appears whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(file)
