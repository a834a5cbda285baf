"""Towers that hear the waveform itself, one clip after the other: Moonshine, conformers, SEW, SpeechT5, PE-Audio."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from uniaudio.model.encoders.base import freeze_mask_embedding
from uniaudio.model.encoders.chunking import CHUNK_SECONDS
from uniaudio.model.encoders.resampled import resample_to
from uniaudio.model.encoders.towers import TowerAudioEncoder, count_convolved, load_tower
from uniaudio.types import SAMPLE_RATE

MOONSHINE_CONVOLUTIONS = ((127, 64), (7, 3), (3, 2))  # kernel and stride


class WaveTowerEncoder(TowerAudioEncoder):
    """A tower whose convolutions read the waveform without padding it."""

    features = "input_values"

    def __init__(self, model: PreTrainedModel, extractor: Any, chunk_seconds: float = CHUNK_SECONDS) -> None:
        # samples of as many frames as the layers pool
        self.shortest = getattr(model.config, "squeeze_factor", 1)
        for kernel, stride in reversed(list_convolutions(model.config)):
            self.shortest = (self.shortest - 1) * stride + kernel
        super().__init__(model, extractor, chunk_seconds)
        freeze_mask_embedding(model)
        # conformers have the convolution, but do not use it
        if hasattr(model.config, "position_embeddings_type"):
            model.encoder.pos_conv_embed.requires_grad_(False)

    def list_layers(self) -> list[nn.Module]:
        encoder = getattr(self.model, "encoder", self.model)
        return list(encoder.layers)

    def count_stride(self) -> int:
        return math.prod(stride for _, stride in list_convolutions(self.model.config))

    def count_frames(self, samples: int) -> int:
        """Return the frames that the convolutions leave."""
        frames = max(samples, self.least)
        for kernel, stride in list_convolutions(self.model.config):
            frames = count_convolved(frames, kernel, stride, 0)
        return frames


def list_convolutions(config: Any) -> list[tuple[int, int]]:
    """Return kernel and stride of the convolutions over the waveform, the first one first."""
    if not hasattr(config, "conv_kernel"):
        return list(MOONSHINE_CONVOLUTIONS)
    return list(zip(config.conv_kernel, config.conv_stride, strict=True))


class SewAudioEncoder(WaveTowerEncoder):
    """SEW and SEW-D (Wu et al. 2021): layers over pairs of frames, which are taken apart behind them.

    The layers have half the rate of the frames, so there are no hidden states.
    """

    def list_layers(self) -> list[nn.Module]:
        return []


def round_to_weights(layers: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> tuple[Any, Any]:
    """Give SpeechT5's layers hidden states in the dtype of their weights: its positions are float32 in any dtype."""
    states: Tensor = given["hidden_states"]
    return args, {**given, "hidden_states": states.to(layers.get_parameter("layer_norm.weight").dtype)}


class SpeechT5AudioEncoder(WaveTowerEncoder):
    """The speech encoder of SpeechT5 (Ao et al. 2022), 50 frames per second."""

    def __init__(self, model: PreTrainedModel, extractor: Any, chunk_seconds: float = CHUNK_SECONDS) -> None:
        super().__init__(model, extractor, chunk_seconds)
        model.wrapped_encoder.register_forward_pre_hook(round_to_weights, with_kwargs=True)

    def list_layers(self) -> list[nn.Module]:
        return list(self.model.wrapped_encoder.layers)


class MoonshineStreamingAudioEncoder(TowerAudioEncoder):
    """Moonshine's encoder for streaming, 50 frames per second; every layer sees a window around a frame."""

    features = "input_values"
    reads_mask = True

    def __init__(self, model: PreTrainedModel, extractor: Any, chunk_seconds: float = CHUNK_SECONDS) -> None:
        self.piece = round(model.config.sample_rate * model.config.frame_ms / 1000)  # samples
        self.shortest = self.piece
        super().__init__(model, extractor, chunk_seconds)
        padding = {"padding": True, "pad_to_multiple_of": self.piece}
        self.extractor_settings = {**padding, "return_attention_mask": True}

    def count_stride(self) -> int:
        return 4 * self.piece

    def count_frames(self, samples: int) -> int:
        """Return a quarter of the whole pieces of 5 ms, rounded up."""
        return -(-(max(samples, self.least) // self.piece) // 4)


class PeAudioTowerEncoder(TowerAudioEncoder):
    """The audio encoder of Perception Encoder Audio (Meta, 2025), at 48 kHz, 25 frames per second.

    The codec below its layers runs without gradients in the stock module, so it is frozen.
    """

    shortest = 1600  # of a piece that can be reflected at its end

    def __init__(self, model: PreTrainedModel, extractor: Any, chunk_seconds: float = CHUNK_SECONDS) -> None:
        super().__init__(model, extractor, chunk_seconds)
        self.model.embedder.dac_encoder.requires_grad_(False)
        self.model.embedder.bottleneck.requires_grad_(False)

    def count_stride(self) -> int:
        return int(self.extractor.hop_length * SAMPLE_RATE / self.extractor.sampling_rate)

    def count_frames(self, samples: int) -> int:
        """Return the begun strides at 48 kHz."""
        loud = round(max(samples, self.least) * self.extractor.sampling_rate / SAMPLE_RATE)
        return -(-loud // int(self.extractor.hop_length))

    def run_model(self, waves: list[NDArray[np.float32]]) -> Tensor:
        rate = self.extractor.sampling_rate
        given = self.extractor(resample_to(waves[0], rate), sampling_rate=rate, return_tensors="pt")
        return self.model(self.move_to_device(given["input_values"])).last_hidden_state

    def encode_chunks(self, waves: list[NDArray[np.float32]], layers: bool) -> list[list[Tensor]]:
        *states, frames = super().encode_chunks(waves, layers)
        # the class token stands before the frames
        return [*([row[1:] for row in rows] for rows in states), frames]


WAVES = "wav2vec2:Wav2Vec2FeatureExtractor"
IN_ENCODER = ("model.encoder.", "encoder.")
load_moonshine = partial(
    load_tower, WaveTowerEncoder, "moonshine:MoonshineEncoder", WAVES, prefixes=IN_ENCODER
)
load_moonshine_streaming = partial(
    load_tower,
    MoonshineStreamingAudioEncoder,
    "moonshine_streaming:MoonshineStreamingEncoder",
    WAVES,
    prefixes=IN_ENCODER,
    sections=("encoder_config",),
)
load_wav2vec2_conformer = partial(
    load_tower,
    WaveTowerEncoder,
    "wav2vec2_conformer:Wav2Vec2ConformerModel",
    WAVES,
    prefixes=("wav2vec2_conformer.",),
)
load_sew = partial(load_tower, SewAudioEncoder, "sew:SEWModel", WAVES, prefixes=("sew.",))
load_sew_d = partial(load_tower, SewAudioEncoder, "sew_d:SEWDModel", WAVES, prefixes=("sew_d.",))
load_speecht5 = partial(
    load_tower,
    SpeechT5AudioEncoder,
    "speecht5:SpeechT5EncoderWithSpeechPrenet",
    WAVES,
    prefixes=("speecht5.encoder.", "encoder."),
)
load_pe_audio = partial(
    load_tower,
    PeAudioTowerEncoder,
    "pe_audio:PeAudioEncoder",
    "pe_audio:PeAudioFeatureExtractor",
    prefixes=("audio_model.audio_encoder.", "audio_encoder."),
    sections=("audio_config",),
)
