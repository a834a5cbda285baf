"""Encoders that this package wrote for transformers, read back with the package's own code."""

from __future__ import annotations

import importlib

import torch

from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.weights import (
    RANDOM,
    build_with_random_weights,
    fill,
    find_model_folder,
    read_model_config,
    read_tensors,
)
from uniaudio.model.rebuild import rebuild

FUSION, ENCODERS = "uniaudio.model.fusion", "uniaudio.model.encoders"
# classes whose constructors take plain values and other parts, and read no file; by name, for modules may move
PARTS = {
    "AstAudioEncoder": f"{ENCODERS}.ast",
    "ClapAudioEncoder": f"{ENCODERS}.clap",
    "CodecAudioEncoder": f"{ENCODERS}.codec",
    "EncodecParts": f"{ENCODERS}.codec",
    "GlmAsrAudioEncoder": f"{ENCODERS}.glmasr",
    "MimiParts": f"{ENCODERS}.codec",
    "OmniAudioEncoder": f"{ENCODERS}.qwen_omni",
    "ParakeetAudioEncoder": f"{ENCODERS}.parakeet",
    "RemoteAudioEncoder": f"{ENCODERS}.hf_auto",
    "W2vBertAudioEncoder": f"{ENCODERS}.w2v_bert",
    "WaveAudioEncoder": f"{ENCODERS}.wav2vec2",
    "WhisperAudioEncoder": f"{ENCODERS}.whisper",
    "GraniteSpeechAudioEncoder": f"{ENCODERS}.conformers",
    "SeamlessAudioEncoder": f"{ENCODERS}.conformers",
    "Gemma3nTowerEncoder": f"{ENCODERS}.conformers",
    "Gemma4TowerEncoder": f"{ENCODERS}.conformers",
    "Phi4AudioEncoder": f"{ENCODERS}.conformers",
    "LasrAudioEncoder": f"{ENCODERS}.conformers",
    "WaveTowerEncoder": f"{ENCODERS}.wave_towers",
    "SewAudioEncoder": f"{ENCODERS}.wave_towers",
    "SpeechT5AudioEncoder": f"{ENCODERS}.wave_towers",
    "MoonshineStreamingAudioEncoder": f"{ENCODERS}.wave_towers",
    "PeAudioTowerEncoder": f"{ENCODERS}.wave_towers",
    "FusedEncoder": f"{FUSION}.encoder",
    "ExplicitInjection": f"{FUSION}.explicit",
    "GateFusion": f"{FUSION}.gate",
    "HconvFusion": f"{FUSION}.hconv",
    "LayerFusion": f"{FUSION}.weighted_layers",
    "ConcatFusion": f"{FUSION}.simple",
    "SumFusion": f"{FUSION}.simple",
    "ScalarMix": f"{FUSION}.simple",
    "MoeFusion": f"{FUSION}.moe",
    "MoweEncoder": f"{FUSION}.mowe",
    "StftBranch": f"{FUSION}.stft_residual",
    "UniMoeFusion": f"{FUSION}.unimoe",
    "WqFusion": f"{FUSION}.wq",
}
PREFIXES = ("encoder.",)


def find_part_class(place: str) -> type:
    """Return a class of this package by ``module:Class``.

    Raises:
        UserError: when an encoder is not made of such a class.
    """
    module, _, name = str(place).partition(":")
    if not module.startswith("uniaudio.") or name not in PARTS:
        raise UserError(f"{place} is none of the classes that an encoder is made of; update uniaudio")
    kind: type = getattr(importlib.import_module(PARTS[name]), name)
    return kind


def load_exported(path: str, revision: str | None = None, seed: int = 0) -> AudioEncoder:
    """Load an exported encoder, single, fused or routed, in float32; the code in its folder is neither read nor run.

    Raises:
        UserError: when it names classes or arguments that encoders do not have, or a tensor is missing or unknown.
    """
    folder = find_model_folder(path, revision)
    described = read_model_config(folder).get("encoder")
    with (
        convert_to_user_error(f"{folder}: its config.json describes no known encoder"),
        torch.device("cpu"),
    ):
        encoder: AudioEncoder = build_with_random_weights(lambda: rebuild(described, find_part_class), seed)
    if not isinstance(encoder, AudioEncoder):
        raise UserError(f"{folder}: its config.json describes no encoder but {type(encoder).__name__}")
    if not path.startswith(RANDOM):
        fill(encoder, read_tensors(folder, PREFIXES), folder)
    return encoder.float()
