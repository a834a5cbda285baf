"""Encoders that this package wrote for transformers, read back with the package's own code."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.weights import build_with_random_weights, fill, read_tensors
from uniaudio.model.model_files import RANDOM, find_model_folder, read_model_config
from uniaudio.model.rebuild import rebuild

FUSION, ENCODERS, ADAPTERS = "uniaudio.model.fusion", "uniaudio.model.encoders", "uniaudio.model.adapters"
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
    "WaveTowerEncoder": f"{ENCODERS}.moonshine_sew_speecht5",
    "SewAudioEncoder": f"{ENCODERS}.moonshine_sew_speecht5",
    "SpeechT5AudioEncoder": f"{ENCODERS}.moonshine_sew_speecht5",
    "MoonshineStreamingAudioEncoder": f"{ENCODERS}.moonshine_sew_speecht5",
    "PeAudioTowerEncoder": f"{ENCODERS}.moonshine_sew_speecht5",
    "FusedEncoder": f"{FUSION}.encoder",
    "ExplicitInjection": f"{FUSION}.explicit",
    "GateFusion": f"{FUSION}.gate",
    "HconvFusion": f"{FUSION}.hconv",
    "LayerFusion": f"{FUSION}.weighted_layers",
    "ConcatFusion": f"{FUSION}.concat_sum_mix",
    "SumFusion": f"{FUSION}.concat_sum_mix",
    "ScalarMix": f"{FUSION}.concat_sum_mix",
    "MoeFusion": f"{FUSION}.moe",
    "MoweEncoder": f"{FUSION}.mowe",
    "StftBranch": f"{FUSION}.stft_residual",
    "UniMoeFusion": f"{FUSION}.unimoe",
    "WqFusion": f"{FUSION}.wq",
    "ConvAdapter": f"{ADAPTERS}.conv",
    "DepthAdapter": f"{ADAPTERS}.depth",
    "LinearAdapter": f"{ADAPTERS}.stack",
    "OneLinear": f"{ADAPTERS}.stock_projectors",
    "PoolAdapter": f"{ADAPTERS}.pool",
    "QueryAdapter": f"{ADAPTERS}.qformer_perceiver",
    "RMSNormSwiGLU": f"{ADAPTERS}.stock_projectors",
    "StackAdapter": f"{ADAPTERS}.stack",
    "StockProjector": f"{ADAPTERS}.stock_projectors",
    "TimeMarkersAdapter": f"{ADAPTERS}.time_markers",
    "TokensAdapter": f"{ADAPTERS}.fixed_tokens",
    "TwoLinear": f"{ADAPTERS}.stock_projectors",
}
PREFIXES = ("encoder.",)

Part = TypeVar("Part", bound=nn.Module)


def find_part_class(place: str) -> type:
    """Return a class of this package by ``module:Class``.

    Raises:
        UserError: when neither an encoder nor an adapter is made of such a class.
    """
    module, _, name = str(place).partition(":")
    if not module.startswith("uniaudio.") or name not in PARTS:
        raise UserError(f"{place} is not a class that exported models consist of; update uniaudio")
    kind: type = getattr(importlib.import_module(PARTS[name]), name)
    return kind


def rebuild_part(described: Any, kind: type[Part], folder: Path, seed: int = 0) -> Part:
    """Make the encoder or the adapter that the config.json of a folder describes, its weights drawn.

    Raises:
        UserError: when it names classes or arguments that there are not, or describes something else.
    """
    noun = "encoder" if issubclass(kind, AudioEncoder) else "adapter"
    with (
        convert_to_user_error(f"{folder}: its config.json describes no known {noun}"),
        torch.device("cpu"),
    ):
        part = build_with_random_weights(lambda: rebuild(described, find_part_class), seed)
    if not isinstance(part, kind):
        raise UserError(f"{folder}: its config.json describes no {noun} but {type(part).__name__}")
    return part


def load_exported(path: str, revision: str | None = None, seed: int = 0) -> AudioEncoder:
    """Load an exported encoder, single, fused or routed, in float32; the code in its folder is neither read nor run.

    It may be alone or that of an exported whole model.

    Raises:
        UserError: when it names classes or arguments that encoders do not have, or a tensor is missing or unknown.
    """
    folder = find_model_folder(path, revision)
    encoder = rebuild_part(read_model_config(folder).get("encoder"), AudioEncoder, folder, seed)
    if not path.startswith(RANDOM):
        fill(encoder, read_tensors(folder, PREFIXES), folder)
    return encoder.float()
