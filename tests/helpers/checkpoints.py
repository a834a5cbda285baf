"""A tiny checkpoint with random weights of every family of encoders, stored like a real one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from transformers import (
    ClapAudioConfig,
    Data2VecAudioConfig,
    EncodecConfig,
    EncodecModel,
    MimiConfig,
    MimiModel,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    PreTrainedModel,
    VoxtralEncoder,
    VoxtralEncoderConfig,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
    Wav2Vec2Config,
    WhisperConfig,
)
from transformers.models.clap.modeling_clap import ClapAudioModel
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniAudioEncoderConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniAudioEncoder
from transformers.models.qwen3_asr.configuration_qwen3_asr import Qwen3ASREncoderConfig
from transformers.models.qwen3_asr.modeling_qwen3_asr import Qwen3ASREncoder
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import Qwen3OmniMoeAudioEncoderConfig
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import Qwen3OmniMoeAudioEncoder
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.tiny.checkpoints import MAKERS, POSITIONS, WAVE, WHISPER, save_model, wave

TRANSFORMER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}


def whisper() -> PreTrainedModel:
    return WhisperEncoder(WhisperConfig(**WHISPER))


def whisper_v3() -> PreTrainedModel:
    return WhisperEncoder(WhisperConfig(**{**WHISPER, "num_mel_bins": 128}))


def qwen2_5_omni() -> PreTrainedModel:
    return Qwen2_5OmniAudioEncoder(Qwen2_5OmniAudioEncoderConfig(**WHISPER, n_window=50, output_dim=24))


def qwen3_omni() -> PreTrainedModel:
    settings = {"n_window": 50, "n_window_infer": 200, "output_dim": 24, "downsample_hidden_size": 8}
    return Qwen3OmniMoeAudioEncoder(Qwen3OmniMoeAudioEncoderConfig(**WHISPER, **settings))


def qwen3_asr() -> PreTrainedModel:
    settings = {"n_window": 50, "n_window_infer": 200, "downsample_hidden_size": 8}
    return Qwen3ASREncoder(Qwen3ASREncoderConfig(**WHISPER, **settings))


def voxtral() -> PreTrainedModel:
    return VoxtralEncoder(VoxtralEncoderConfig(**TRANSFORMER, num_mel_bins=80))


def parakeet() -> PreTrainedModel:
    return ParakeetEncoder(
        ParakeetEncoderConfig(**TRANSFORMER, num_mel_bins=80, subsampling_conv_channels=8, conv_kernel_size=5)
    )


def tower(place: str, **settings: Any) -> PreTrainedModel:
    """A stock tower by ``folder:Class``, with two layers of width 32 unless the settings say otherwise."""
    folder, _, name = place.partition(":")
    kind = getattr(importlib.import_module(f"transformers.models.{folder}.modeling_{folder}"), name)
    return kind(kind.config_class(**settings))


GRANITE = {
    "input_dim": 160,
    "num_layers": 2,
    "hidden_dim": 32,
    "feedforward_mult": 2,
    "num_heads": 2,
    "output_dim": 12,
    "conv_kernel_size": 5,
    "context_size": 20,
    "max_pos_emb": 24,
}
SEAMLESS = {
    "hidden_size": 32,
    "feature_projection_input_dim": 160,
    "speech_encoder_layers": 2,
    "speech_encoder_attention_heads": 2,
    "speech_encoder_intermediate_size": 48,
    "conv_depthwise_kernel_size": 5,
    "max_source_positions": 4096,
}
GEMMA3N = {
    "hidden_size": 32,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 2,
    "sscp_conv_channel_size": (8, 4),
}
GEMMA4 = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "subsampling_conv_channels": (128, 4),
    "output_proj_dims": 24,
}
PHI4 = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_blocks": 2,
    "num_attention_heads": 2,
    "ext_pw_out_channel": 32,
    "depthwise_separable_out_channel": 32,
    "nemo_conv_channels": 8,
    "bias_max_distance": 40,
}
LASR = {**TRANSFORMER, "num_mel_bins": 128, "conv_kernel_size": 8, "subsampling_conv_channels": 16}
MOONSHINE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "encoder_num_hidden_layers": 2,
    "encoder_num_attention_heads": 2,
}
STREAMING = {**TRANSFORMER, "num_key_value_heads": 2, "sliding_windows": ((16, 4), (16, 0))}
DAC = {"encoder_hidden_size": 4, "downsampling_ratios": [2, 8, 10, 12], "codebook_dim": 8}
PE_AUDIO = {**TRANSFORMER, "head_dim": 16, "dac_config": DAC}
SEW = {
    **WAVE,
    "conv_dim": (16,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
    "squeeze_factor": 2,
    **POSITIONS,
}
SPEECHT5 = {
    "hidden_size": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 48,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embedding_groups": 2,
    "encoder_max_relative_position": 20,
    **POSITIONS,
}
TOWERS: Mapping[str, Callable[[], PreTrainedModel]] = {
    name: partial(tower, place, **settings)
    for name, place, settings in (
        ("granite_speech", "granite_speech:GraniteSpeechCTCEncoder", GRANITE),
        (
            "granite_speech_plus",
            "granite_speech_plus:GraniteSpeechPlusCTCEncoder",
            {**GRANITE, "cat_hidden_layers": [1]},
        ),
        ("seamless_m4t", "seamless_m4t:SeamlessM4TSpeechEncoder", SEAMLESS),
        ("seamless_m4t_v2", "seamless_m4t_v2:SeamlessM4Tv2SpeechEncoder", SEAMLESS),
        ("gemma3n", "gemma3n:Gemma3nAudioEncoder", GEMMA3N),
        ("gemma4", "gemma4:Gemma4AudioModel", GEMMA4),
        ("phi4", "phi4_multimodal:Phi4MultimodalAudioModel", PHI4),
        ("lasr", "lasr:LasrEncoder", LASR),
        ("moonshine", "moonshine:MoonshineEncoder", MOONSHINE),
        ("moonshine_streaming", "moonshine_streaming:MoonshineStreamingEncoder", STREAMING),
        ("wav2vec2-conformer", "wav2vec2_conformer:Wav2Vec2ConformerModel", {**WAVE, **POSITIONS}),
        ("sew", "sew:SEWModel", SEW),
        ("sew-d", "sew_d:SEWDModel", SEW),
        ("speecht5", "speecht5:SpeechT5EncoderWithSpeechPrenet", SPEECHT5),
        ("pe_audio", "pe_audio:PeAudioEncoder", PE_AUDIO),
    )
}


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
    "qwen3_asr": qwen3_asr,
    "voxtral": voxtral,
    "glmasr": lambda: tower("glmasr:GlmAsrEncoder", **TRANSFORMER, num_mel_bins=80),
    "parakeet": parakeet,
    **TOWERS,
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
