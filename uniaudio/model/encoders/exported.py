"""Encoders that this package wrote for transformers, read back with the package's own code."""

from __future__ import annotations

import importlib

import torch

from uniaudio.errors import UserError
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.weights import (
    RANDOM,
    checkpoint_folder,
    fill,
    read_model_config,
    read_tensors,
    with_random_weights,
)
from uniaudio.model.rebuild import rebuild

OWN = "uniaudio.model."  # classes of other modules are not named by what the package writes
PREFIXES = ("encoder.",)


def own_part(place: str) -> type:
    """Return a class of this package by ``module:Class``.

    Raises:
        UserError: when there is none.
    """
    module, _, name = place.partition(":")
    try:
        if not module.startswith(OWN):
            raise ImportError(f"{module} does not begin with {OWN}")
        kind: type = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as problem:
        raise UserError(f"{place} is not known here ({problem}); update uniaudio") from problem
    return kind


def load_exported(path: str, revision: str | None = None, seed: int = 0) -> AudioEncoder:
    """Load an exported encoder, single, fused or routed, in float32; the code in its folder is neither read nor run.

    Raises:
        UserError: when it was written by a version with other classes, or a tensor is missing or unknown.
    """
    folder = checkpoint_folder(path.removeprefix(RANDOM), revision)
    described = read_model_config(folder).get("encoder")
    try:
        with torch.device("cpu"):
            encoder: AudioEncoder = with_random_weights(lambda: rebuild(described, own_part), seed)
    except (TypeError, KeyError, ValueError) as problem:
        raise UserError(f"{folder}: its config.json describes no known encoder ({problem})") from problem
    if not path.startswith(RANDOM):
        fill(encoder, read_tensors(folder, PREFIXES), folder)
    return encoder.float()
