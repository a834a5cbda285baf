"""Encoders that this package wrote for transformers, read back with the package's own code."""

from __future__ import annotations

import importlib

import torch

from uniaudio.errors import UserError, convert_to_user_error
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

FUSION, ENCODERS = "uniaudio.model.fusion", "uniaudio.model.encoders"
PARTS = (  # classes whose constructors take plain values and other parts, and read no file
    f"{ENCODERS}.ast:AstAudioEncoder",
    f"{ENCODERS}.clap:ClapAudioEncoder",
    f"{ENCODERS}.codec:CodecAudioEncoder",
    f"{ENCODERS}.codec:EncodecParts",
    f"{ENCODERS}.codec:MimiParts",
    f"{ENCODERS}.omni:OmniAudioEncoder",
    f"{ENCODERS}.remote:RemoteAudioEncoder",
    f"{ENCODERS}.w2v_bert:W2vBertAudioEncoder",
    f"{ENCODERS}.wave:WaveAudioEncoder",
    f"{ENCODERS}.whisper:WhisperAudioEncoder",
    f"{FUSION}.encoder:FusedEncoder",
    f"{FUSION}.explicit:ExplicitInjection",
    f"{FUSION}.gate:GateFusion",
    f"{FUSION}.hconv:HconvFusion",
    f"{FUSION}.layers:LayerFusion",
    f"{FUSION}.linear:ConcatFusion",
    f"{FUSION}.linear:SumFusion",
    f"{FUSION}.mix:ScalarMix",
    f"{FUSION}.moe:MoeFusion",
    f"{FUSION}.mowe:MoweEncoder",
    f"{FUSION}.stft:StftBranch",
    f"{FUSION}.unimoe:UniMoeFusion",
    f"{FUSION}.wq:WqFusion",
)
PREFIXES = ("encoder.",)


def part_class(place: str) -> type:
    """Return a class of this package by ``module:Class``.

    Raises:
        UserError: when an encoder is not made of such a class.
    """
    if place not in PARTS:
        raise UserError(f"{place} is none of the classes that an encoder is made of; update uniaudio")
    module, _, name = place.partition(":")
    kind: type = getattr(importlib.import_module(module), name)
    return kind


def load_exported(path: str, revision: str | None = None, seed: int = 0) -> AudioEncoder:
    """Load an exported encoder, single, fused or routed, in float32; the code in its folder is neither read nor run.

    Raises:
        UserError: when it names classes or arguments that encoders do not have, or a tensor is missing or unknown.
    """
    folder = checkpoint_folder(path.removeprefix(RANDOM), revision)
    described = read_model_config(folder).get("encoder")
    with (
        convert_to_user_error(f"{folder}: its config.json describes no known encoder"),
        torch.device("cpu"),
    ):
        encoder: AudioEncoder = with_random_weights(lambda: rebuild(described, part_class), seed)
    if not isinstance(encoder, AudioEncoder):
        raise UserError(f"{folder}: its config.json describes no encoder but {type(encoder).__name__}")
    if not path.startswith(RANDOM):
        fill(encoder, read_tensors(folder, PREFIXES), folder)
    return encoder.float()
