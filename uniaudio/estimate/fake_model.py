"""The model of a stage on tensors that have a shape, dtype and device and no values, from local configs alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from uniaudio.build.adapter import make_adapter
from uniaudio.build.encoder_sketch import sketch_encoder
from uniaudio.build.model import read_decoder_config
from uniaudio.checks.first_rows import AverageClip
from uniaudio.config.run import RunConfig
from uniaudio.data.collate import collate
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoder_limits import refuse_unusable_class
from uniaudio.model.decoder_loading import DTYPES, make_trainable
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.fp8 import FP8, convert_to_float8
from uniaudio.model.model_files import use_stock_attention
from uniaudio.model.whisper_decoder import CrossAttentionLM, LinearBridge, WhisperTextDecoder
from uniaudio.train.trainable import go_through_stages
from uniaudio.types import SAMPLE_RATE, Batch, Example


@dataclass(frozen=True)
class Blueprint:
    """What the models of a run's stages are made from.

    Args:
        encoder: on the meta device, as it is built, before any stage. decoder: the configuration of its text model.
    """

    encoder: AudioEncoder
    decoder: PretrainedConfig

    @classmethod
    def from_config(cls, config: RunConfig) -> Self:
        """Read it off the configs of checkpoints, without any weights.

        Raises:
            UserError: when the encoder is a class of the user's own, needs code that is not trusted or is a run with
                such an encoder, so that its architecture is not known here; when the decoder cannot be used.
        """
        architecture = read_decoder_config(config)
        if not isinstance(architecture, WhisperConfig):
            refuse_unusable_class(architecture)
        encoder = sketch_encoder(config)
        if encoder is None:
            names = ", ".join(settings.path or settings.kind for settings in config.encoders.values())
            fix = (
                "a class of your own (module:Class) has no estimate; put a known encoder of its size in its place"
                if any(":" in settings.kind for settings in config.encoders.values())
                else "give --trust-remote-code if it has code of its own that you trust"
            )
            raise UserError(
                f"encoders: the architecture of {names} is not known without its weights or code; {fix}"
            )
        return cls(encoder, architecture)

    @classmethod
    def from_model(cls, model: AudioLM) -> Self:
        """Take it from a model that was just built, wherever its parts are from."""
        encoder, decoder = copy_without_values(model.encoder, "meta"), cast(Any, model.decoder)
        if isinstance(decoder, WhisperTextDecoder):
            return cls(encoder, decoder.decoder.config)
        return cls(encoder, decoder.lm.config.get_text_config())


def copy_without_values(encoder: AudioEncoder, device: str | None = None) -> AudioEncoder:
    """Return a copy of an encoder whose tensors have no values; on its own device if no other is named."""
    memo: dict[int, Any] = {}
    for tensor in (*encoder.parameters(), *encoder.buffers()):
        memo[id(tensor)] = convert_to_parameter(torch.empty_like(tensor, device=device), tensor)
    return copy.deepcopy(encoder, memo)


def convert_to_parameter(bare: Tensor, model_tensor: Tensor) -> Tensor:
    """Return a tensor as a parameter where ``model_tensor`` is one."""
    if not isinstance(model_tensor, nn.Parameter):
        return bare
    return nn.Parameter(bare, model_tensor.requires_grad)


class TokenCounts:
    """Stands for the chat format of a tokenizer: a text is the number of its tokens."""

    def encode_prompt(self, pieces: tuple[str, ...]) -> list[list[int]]:
        return [[0] * int(piece) for piece in pieces]

    def answer(self, text: str) -> list[int]:
        return [0] * int(text)


def build_fake_model(blueprint: Blueprint, config: RunConfig, stage: int, dtype: torch.dtype) -> AudioLM:
    """Build the model of a stage, in training, with tensors that say they are on the CPU and have no values.

    Args:
        dtype: of a decoder that is not trained in full.
    """
    with torch.device("meta"):
        encoder = copy.deepcopy(blueprint.encoder)
        decoder = build_meta_decoder(blueprint.decoder, config, dtype)
        if isinstance(decoder, WhisperTextDecoder):
            bridge: Adapter = LinearBridge(encoder.dim, decoder.dim)
            model: AudioLM = CrossAttentionLM(encoder, bridge, decoder, config.train.label_chunk)
        else:
            adapter = make_adapter(config.adapter, encoder, decoder.dim)
            model = AudioLM(encoder, adapter, decoder, config.train.label_chunk)
        go_through_stages(model, config, stage)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}
    for module in model.modules():
        places: list[dict[str, Any]] = [module._parameters, module._buffers]
        for place in places:
            for name, tensor in place.items():
                if tensor is not None and id(tensor) not in made:
                    with mode:
                        bare = torch.empty_strided(
                            tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu"
                        )
                    made[id(tensor)] = convert_to_parameter(bare, tensor)
                if tensor is not None:
                    place[name] = made[id(tensor)]
    return model.train()


def build_meta_decoder(
    architecture: PretrainedConfig, config: RunConfig, dtype: torch.dtype
) -> TextDecoder | WhisperTextDecoder:
    """Build the decoder on the meta device, trained as the config says."""
    settings, architecture = config.decoder, copy.deepcopy(architecture)
    architecture.pad_token_id = 0  # the stated one may lie outside of a small vocabulary
    dtype = torch.float32 if settings.train == "full" else dtype
    if isinstance(architecture, WhisperConfig):
        stock = WhisperDecoder(architecture)
        whisper = WhisperTextDecoder(stock.to(dtype))
        make_trainable(whisper, stock, settings.train, settings.lora, 0)
        return whisper
    with convert_to_user_error(f"decoder: a {architecture.model_type} model cannot be built without weights"):
        lm = AutoModelForCausalLM.from_config(use_stock_attention(architecture), dtype=dtype)
    with torch.device("cpu"):  # of what describes rows
        decoder = TextDecoder(lm, settings.attention)
    if settings.dtype == FP8:
        convert_to_float8(lm.base_model)
    make_trainable(decoder, decoder.lm.base_model, settings.train, settings.lora, 0)
    return decoder


def make_equal_clips(model: AudioLM, clip: AverageClip, clips: int) -> Batch:
    """Return a batch of clips of silence that are all as long as the average one at its longest."""
    silence = np.zeros(round(clip.budget_seconds * SAMPLE_RATE), dtype=np.int16)
    example = Example("", "plan", "", (silence,), ("1", str(clip.question - 1)), str(clip.answer))
    return collate([example] * clips, TokenCounts(), model.count_slots, ("plan",))  # type: ignore[arg-type]


def choose_gpu_precision(config: RunConfig) -> torch.dtype:
    """Return the dtype of a run on a GPU: bfloat16 unless the config says otherwise."""
    stated = DTYPES.get(config.decoder.dtype)
    return stated or (torch.float32 if config.train.precision == "no" else torch.bfloat16)
