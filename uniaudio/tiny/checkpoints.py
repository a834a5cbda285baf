"""Tiny checkpoints with random weights of the families that the small versions of the published configs use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import (
    ASTConfig,
    ASTModel,
    ClapAudioConfig,
    HubertConfig,
    PreTrainedModel,
    WavLMConfig,
)
from transformers.models.audioflamingo3.configuration_audioflamingo3 import AudioFlamingo3EncoderConfig
from transformers.models.auto.modeling_auto import AutoModel
from transformers.models.clap.modeling_clap import ClapAudioModel
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig

from uniaudio.outputs import apply_umask

WHISPER = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "num_mel_bins": 80,
}
WAVE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 2,
    "vocab_size": 16,
}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}
POSITIONS = {"num_conv_pos_embeddings": 16}
BUCKETS = {"num_buckets": 20, "max_bucket_distance": 40}


def qwen2_audio() -> PreTrainedModel:
    return AutoModel.from_config(Qwen2AudioEncoderConfig(**WHISPER))


def audioflamingo3() -> PreTrainedModel:
    config = AudioFlamingo3EncoderConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, num_mel_bins=80
    )
    return AutoModel.from_config(config)


def wave(kind: type, **settings: object) -> PreTrainedModel:
    return AutoModel.from_config(kind(**WAVE, **settings))


def clap() -> PreTrainedModel:
    config = ClapAudioConfig(
        patch_embeds_hidden_size=8,
        depths=[1, 1, 2, 1],
        num_attention_heads=[1, 1, 2, 2],
        hidden_size=64,
        projection_dim=16,
    )
    return ClapAudioModel(config)


def ast() -> PreTrainedModel:
    config = ASTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
    model = ASTModel(config)
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    return model


MAKERS: Mapping[str, Callable[[], PreTrainedModel]] = {
    "qwen2_audio": qwen2_audio,
    "audioflamingo3": audioflamingo3,
    "hubert": lambda: wave(HubertConfig, **POSITIONS, **STABLE),
    "wavlm": lambda: wave(WavLMConfig, **POSITIONS, **BUCKETS),
    "clap": clap,
    "ast": ast,
}


def save_model(make: Callable[[], PreTrainedModel], folder: Path, seed: int = 0) -> PreTrainedModel:
    """Write a tiny checkpoint to a folder as ``transformers`` does; its weights are a function of the seed.

    Returns:
        The stock model, in eval mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
    model.save_pretrained(folder)
    apply_umask(folder)
    return model
