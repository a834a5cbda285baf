"""Tiny checkpoints with random weights of the families that small versions of published configs use."""

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
    WhisperConfig,
)
from transformers.models.audioflamingo3.configuration_audioflamingo3 import AudioFlamingo3EncoderConfig
from transformers.models.auto.modeling_auto import AutoModel
from transformers.models.clap.modeling_clap import ClapAudioModel
from transformers.models.qwen2_audio.configuration_qwen2_audio import Qwen2AudioEncoderConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.model.model_files import RANDOM_WEIGHTS
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


def save_miniature_whisper(
    folder: Path, d_model: int = 64, layers: int = 2, heads: int = 2, mels: int = 80, seed: int = 0
) -> Path:
    """Write a Whisper encoder with random weights (50 frames a second, reach 30 s) as a ``transformers``
    folder.

    The usual initialisation (0.02 everywhere) is for large widths: here it would leave the sound at a
    fortieth of the position embedding that is added to it, and nothing would be learned in a few hundred
    steps. The same seed gives the same weights, whatever the state of torch's generator, which is left as it
    was.
    """
    config = WhisperConfig(
        init_std=d_model**-0.5,
        d_model=d_model,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * d_model,
        num_mel_bins=mels,
        # The decoder of the configuration is never built; it is kept as small as the file allows.
        decoder_layers=1,
        decoder_attention_heads=1,
        decoder_ffn_dim=d_model,
        vocab_size=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        **RANDOM_WEIGHTS,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = WhisperEncoder(config)
        for convolution in (encoder.conv1, encoder.conv2):
            torch.nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    encoder.save_pretrained(folder)
    apply_umask(folder)
    return folder
