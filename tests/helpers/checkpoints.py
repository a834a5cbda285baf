"""A tiny checkpoint with random weights of every family of encoders, stored like a real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from transformers import (
    ClapAudioConfig,
    Data2VecAudioConfig,
    EncodecConfig,
    EncodecModel,
    MimiConfig,
    MimiModel,
    PreTrainedModel,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    WhisperConfig,
)
from transformers.models.clap.modeling_clap import ClapAudioModel
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.tiny.checkpoints import MAKERS, POSITIONS, WHISPER, save_model, wave


def whisper() -> PreTrainedModel:
    return WhisperEncoder(WhisperConfig(**WHISPER))


def whisper_v3() -> PreTrainedModel:
    return WhisperEncoder(WhisperConfig(**{**WHISPER, "num_mel_bins": 128}))


def qwen2_5_omni() -> PreTrainedModel:
    return Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**WHISPER, n_window=50, output_dim=24))


def qwen3_omni() -> PreTrainedModel:
    settings = {"n_window": 50, "n_window_infer": 200, "output_dim": 24, "downsample_hidden_size": 8}
    return Qwen3OmniMoeAudioEncoder(Qwen3OmniMoeAudioEncoderConfig(**WHISPER, **settings))


def fused_clap() -> PreTrainedModel:
    config = ClapAudioConfig(
        patch_embeds_hidden_size=8,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        hidden_size=64,
        enable_fusion=True,
        aff_block_r=2,
    )
    return ClapAudioModel(config)


def w2v_bert() -> PreTrainedModel:
    config = Wav2Vec2BertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        left_max_position_embeddings=8,
        right_max_position_embeddings=4,
        conv_depthwise_kernel_size=5,
    )
    return Wav2Vec2BertModel(config)


def encodec() -> PreTrainedModel:
    config = EncodecConfig(num_filters=4, hidden_size=16, num_lstm_layers=1, codebook_size=8, codebook_dim=16)
    return EncodecModel(config)


def mimi() -> PreTrainedModel:
    config = MimiConfig(
        num_filters=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=48,
        codebook_size=8,
        codebook_dim=8,
        vector_quantization_hidden_dimension=8,
        num_quantizers=2,
        num_semantic_quantizers=1,
        upsample_groups=32,
    )
    return MimiModel(config)


MINIATURES: Mapping[str, Callable[[], PreTrainedModel]] = {
    "whisper": whisper,
    "whisper, 128 mels": whisper_v3,
    **MAKERS,
    "qwen2_5_omni": qwen2_5_omni,
    "qwen3_omni": qwen3_omni,
    "wav2vec2": lambda: wave(Wav2Vec2Config, **POSITIONS),
    "data2vec-audio": lambda: wave(Data2VecAudioConfig, num_conv_pos_embeddings=3, conv_pos_kernel_size=7),
    "w2v_bert": w2v_bert,
    "clap, fused": fused_clap,
    "encodec": encodec,
    "mimi": mimi,
}


def save_miniature(kind: str, folder: Path, seed: int = 0) -> PreTrainedModel:
    """Write a tiny checkpoint of a family to a folder and return the stock model, see ``save_model``."""
    return save_model(MINIATURES[kind], folder, seed)
