"""The model of a run with one or two layers of each stack: from what its step costs follows what the whole one costs.

The code that runs is the one that trains, at the real widths, so nothing about an architecture is written down twice.
What is kept and computed is linear in the layers of every stack and in the clips of a batch.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from uniaudio.build.activation_checkpointing import DECODER, part_of
from uniaudio.build.adapter import make_adapter
from uniaudio.build.encoders import sketch_encoder
from uniaudio.config.run import RunConfig
from uniaudio.data.collate import collate
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import DTYPES, TextDecoder, make_trainable
from uniaudio.model.decoder_limits import build_on_meta, refuse_unusable_class
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.hf_auto import RemoteAudioEncoder
from uniaudio.model.encoders.weights import refuse_unusable_files, stock_config, with_stock_attention
from uniaudio.model.fp8 import FP8, to_float8
from uniaudio.model.whisper_decoder import CrossAttentionLM, LinearBridge, WhisperTextDecoder
from uniaudio.tiny.text_lm import qwen_config
from uniaudio.train.trainable import go_through_stages
from uniaudio.types import SAMPLE_RATE, Batch, Example

WORDS = 256  # size of the vocabulary of a thin decoder: logits are reckoned apart


@dataclass(frozen=True)
class Clip:
    """The average example: seconds of audio, tokens of the question and of the answer with its end."""

    seconds: float
    question: int
    answer: int


@dataclass(frozen=True)
class Blueprint:
    """What thin models of a run are cut from.

    Args:
        encoder: on the meta device, as it is built, before any stage. decoder: the configuration of its text model.
    """

    encoder: AudioEncoder
    decoder: PretrainedConfig

    @classmethod
    def sketched(cls, config: RunConfig) -> Self:
        """Read it off the configs of local checkpoints, without any weights.

        Raises:
            UserError: when the encoder or decoder is not a local folder, so that its architecture is not known here;
                when the decoder cannot be used, or its layers are of several kinds.
        """
        architecture = decoder_architecture(config)
        if not isinstance(architecture, WhisperConfig):
            refuse_unequal_layers(architecture)
        return cls(meta_encoder(config), architecture)

    @classmethod
    def of(cls, model: AudioLM) -> Self:
        """Take it from a model that was just built, wherever its parts are from."""
        decoder: Any = model.decoder
        stock = decoder.decoder if isinstance(decoder, WhisperTextDecoder) else decoder.lm
        found = stock.config
        return cls(
            without_weights(model.encoder), found if stock is not decoder.lm else found.get_text_config()
        )

    def depths(self) -> dict[str, int]:
        """Return the number of layers of every stack that a thin model shortens."""
        layers = {name: len(stack) for name, stack in stacks(self.encoder).items()}
        return {**layers, DECODER: depth_of(self.decoder)}


def without_weights(encoder: AudioEncoder) -> AudioEncoder:
    """Copy an encoder to the meta device."""
    memo: dict[int, Any] = {}
    for parameter in encoder.parameters():
        memo[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), parameter.requires_grad
        )
    for buffer in encoder.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(encoder, memo)


class CountedIds:
    """Stands for the chat format of a tokenizer: a text is the number of its tokens."""

    def prompt(self, pieces: tuple[str, ...]) -> list[list[int]]:
        return [[0] * int(piece) for piece in pieces]

    def answer(self, text: str) -> list[int]:
        return [0] * int(text)


def meta_encoder(config: RunConfig) -> AudioEncoder:
    encoder = sketch_encoder(config)
    if encoder is None:
        names = ", ".join(settings.path or settings.kind for settings in config.encoders.values())
        raise UserError(
            f"encoders: the architecture of {names} is not known without a local folder; fetch it first"
        )
    return encoder


def stacks(encoder: AudioEncoder) -> dict[str, nn.ModuleList]:
    """Return the lists of equal layers of an encoder, or of each encoder of a fused one.

    None where a fusion reads hidden states layer by layer, for it needs all of them, and none of encoders whose code is
    not known here.
    """
    if getattr(getattr(encoder, "operator", None), "uses_layers", False):
        return {}
    parts = getattr(encoder, "encoders", {})
    homes = {f"encoders.{name}.": part for name, part in parts.items()} or {"": encoder}
    found: dict[str, nn.ModuleList] = {}
    for home, part in homes.items():
        if isinstance(part, RemoteAudioEncoder) or not type(part).__module__.startswith("uniaudio."):
            continue
        for name, module in part.named_modules(prefix=home.removesuffix(".")):
            inside = any(name.startswith(f"{outer}.") for outer in found)
            if (
                isinstance(module, nn.ModuleList)
                and not inside
                and len({shape_of(layer) for layer in module}) == 1
            ):
                found[name] = module
    return found


def shape_of(layer: nn.Module) -> tuple[object, ...]:
    """Return what makes two layers equal: their class, and names and shapes of their parameters."""
    return type(layer), *((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters())


def thin_model(
    blueprint: Blueprint,
    config: RunConfig,
    stage: int,
    depths: dict[str, int],
    dtype: torch.dtype,
    recomputed: str = "",
) -> AudioLM:
    """Build the model of a stage on the CPU with so many layers of every stack; its weights mean nothing.

    Args:
        recomputed: the one encoder that recomputes, by its name in the config, or ``decoder``.
    """
    encoder = copy.deepcopy(blueprint.encoder)
    for name, stack in stacks(encoder).items():
        del stack[depths[name] :]
    fill_with_zeros(encoder)
    decoder = thin_decoder(blueprint, config, depths[DECODER], dtype)
    if isinstance(decoder, WhisperTextDecoder):
        bridge: Adapter = LinearBridge(encoder.dim, decoder.dim)
        model: AudioLM = CrossAttentionLM(encoder, bridge, decoder, config.train.label_chunk)
    else:
        adapter = make_adapter(config.adapter, encoder, decoder.dim)
        model = AudioLM(encoder, adapter, decoder, config.train.label_chunk)
    go_through_stages(model, config, stage)
    if recomputed:
        part_of(model, config, recomputed).recompute()
    return model.train()


def fill_with_zeros(module: nn.Module) -> None:
    """Give a module without weights some on the CPU; a shared parameter stays shared."""
    made: dict[int, torch.Tensor] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                zeros = nn.Parameter(
                    torch.zeros(parameter.shape, dtype=parameter.dtype), parameter.requires_grad
                )
                part._parameters[name] = made.setdefault(id(parameter), zeros)  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.zeros(buffer.shape, dtype=buffer.dtype)


def decoder_architecture(config: RunConfig) -> PretrainedConfig:
    """Return the decoder's configuration.

    Raises:
        UserError: when it is neither miniature nor a folder with a model that can be used.
    """
    if config.decoder.miniature is not None:
        small = config.decoder.miniature
        return qwen_config(small, small.vocabulary, 0, 0)
    refuse_unusable_files(config.decoder.path, "decoder.path")
    with convert_to_user_error(f"decoder.path: the config.json of {config.decoder.path} cannot be read"):
        found = stock_config(config.decoder.path, config.decoder.revision)
    if isinstance(found, WhisperConfig):
        return found
    refuse_unusable_class(found)
    return found.get_text_config()


def depth_of(architecture: Any) -> int:
    """Return the layers of a decoder; Whisper's configuration is of its encoder too."""
    whisper = isinstance(architecture, WhisperConfig)
    return int(architecture.decoder_layers if whisper else architecture.num_hidden_layers)


def refuse_unequal_layers(architecture: PretrainedConfig) -> None:
    """Refuse a decoder whose layers have different parameters: one and two of them say nothing about the others.

    Raises:
        UserError: naming the kind of model.
    """
    lists = [part for part in build_on_meta(architecture).modules() if isinstance(part, nn.ModuleList)]
    layers = next((part for part in lists if len(part) == depth_of(architecture)), None)
    if layers is not None and len({shape_of(layer) for layer in layers}) > 1:
        raise UserError(
            f"decoder: the layers of this {architecture.model_type} model are of several kinds, so their cost does not "
            "follow from one and two of them; try the run itself on one GPU (uniaudio tune-batch)"
        )


def thin_decoder(
    blueprint: Blueprint, config: RunConfig, layers: int, dtype: torch.dtype
) -> TextDecoder | WhisperTextDecoder:
    """Build the decoder with so many layers and a small vocabulary."""
    settings = config.decoder
    architecture: Any = copy.deepcopy(blueprint.decoder)
    architecture.vocab_size = WORDS
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        setattr(architecture, name, 0)
    if isinstance(architecture, WhisperConfig):
        architecture.decoder_layers = layers
        stock = WhisperDecoder(architecture)
        whisper = WhisperTextDecoder(stock.to(dtype))
        make_trainable(whisper, stock, settings.train, settings.lora, 0)
        return whisper
    architecture.num_hidden_layers = layers
    for name in ("layer_types", "attention_layers"):
        if getattr(architecture, name, None):
            with contextlib.suppress(AttributeError):  # where it follows from the number of layers
                setattr(architecture, name, getattr(architecture, name)[:layers])
    with convert_to_user_error(
        f"decoder: one layer of a {architecture.model_type} model cannot be built to count what it costs"
    ):
        lm = AutoModelForCausalLM.from_config(
            with_stock_attention(architecture), dtype=torch.float32 if settings.train == "full" else dtype
        )
    decoder = TextDecoder(lm, settings.attention)
    if settings.dtype == FP8:
        to_float8(lm.base_model)
    make_trainable(decoder, decoder.lm.base_model, settings.train, settings.lora, 0)
    return decoder


def equal_clips(model: AudioLM, clip: Clip, clips: int) -> Batch:
    """Return a batch of clips of silence that are all as long as the average one."""
    silence = np.zeros(round(clip.seconds * SAMPLE_RATE), dtype=np.int16)
    example = Example("", "plan", "", (silence,), ("1", str(clip.question - 1)), str(clip.answer))
    return collate([example] * clips, CountedIds(), model.slots_for, ("plan",))  # type: ignore[arg-type]


def precision_on_gpu(config: RunConfig) -> torch.dtype:
    """Return the dtype of a run on a GPU: bfloat16 unless the config says otherwise."""
    stated = DTYPES.get(config.decoder.dtype)
    return stated or (torch.float32 if config.train.precision == "no" else torch.bfloat16)
