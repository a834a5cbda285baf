"""The model of a run with one or two layers of each stack: from what its step costs follows what the whole one costs.

The code that runs is the one that trains, at the real widths, so nothing about an architecture is written down twice.
What is kept and computed is linear in the layers of every stack and in the clips of a batch.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperDecoder

from uniaudio.assemble.encoders import sketch_encoder
from uniaudio.config.run import RunConfig
from uniaudio.data.batch import collate
from uniaudio.errors import UserError
from uniaudio.miniature.text_lm import qwen_config
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.adapters.choose import make_adapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.counted import Counted, count
from uniaudio.model.decoder import DTYPES, TextDecoder, make_trainable
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.whisper_decoder import CrossAttentionLM, LinearBridge, WhisperTextDecoder
from uniaudio.train.structure import go_through_stages
from uniaudio.types import SAMPLE_RATE, Batch, Example

WORDS = 256  # size of the vocabulary of a thin decoder: logits are reckoned apart
DECODER = "decoder"  # its stack of layers, beside those of the encoder, which have their names


@dataclass(frozen=True)
class Clip:
    """The average example: seconds of audio, tokens of the question and of the answer with its end."""

    seconds: float
    question: int
    answer: int


@dataclass(frozen=True)
class StepCost:
    """Counted of a whole model: ``fixed`` in every micro-batch, ``per_clip`` for each clip of it on top."""

    fixed: Counted
    per_clip: Counted

    def of(self, clips: float) -> Counted:
        """Return what a micro-batch of so many clips keeps and computes."""
        return self.fixed + self.per_clip * clips


class CountedIds:
    """Stands for the chat format of a tokenizer: a text is the number of its tokens."""

    def prompt(self, pieces: tuple[str, ...]) -> list[list[int]]:
        return [[0] * int(piece) for piece in pieces]

    def answer(self, text: str) -> list[int]:
        return [0] * int(text)


def step_cost(config: RunConfig, stage: int, clip: Clip, dtype: torch.dtype) -> StepCost:
    """Count what a micro-batch of equal clips costs the model of a stage, without any of its weights.

    Args:
        dtype: of the frozen decoder and, if it is not float32, of autocast.

    Raises:
        UserError: when the encoder or decoder is not a local folder, so that its architecture is not known here.
    """
    depths = stack_depths(config)

    def counted(thick: str | None, clips: int) -> Counted:
        model = thin_model(config, stage, {name: 2 if name == thick else 1 for name in depths}, dtype)
        batch = equal_clips(model, clip, clips)

        def forward() -> torch.Tensor:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(batch)
            return loss.total + sum(extra.value() for extra in loss.auxiliary.values())

        return count(model, forward)

    def whole(clips: int) -> Counted:
        one = counted(None, clips)
        total = one
        for name, depth in depths.items():
            total = total + (counted(name, clips) - one) * (depth - 1)
        return total

    with torch.random.fork_rng(devices=[]):
        alone, both = whole(1), whole(2)
    return StepCost(alone - (both - alone), both - alone)


def stack_depths(config: RunConfig) -> dict[str, int]:
    """Return the number of layers of every stack that a thin model shortens."""
    encoder = meta_encoder(config)
    return {
        **{name: len(stack) for name, stack in stacks(encoder).items()},
        DECODER: depth_of(decoder_architecture(config)),
    }


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

    None where a fusion reads hidden states layer by layer: it needs all of them.
    """
    if getattr(getattr(encoder, "operator", None), "uses_layers", False):
        return {}
    parts = getattr(encoder, "encoders", {})
    homes = {f"encoders.{name}.": part for name, part in parts.items()} or {"": encoder}
    found: dict[str, nn.ModuleList] = {}
    for home, part in homes.items():
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


def thin_model(config: RunConfig, stage: int, depths: dict[str, int], dtype: torch.dtype) -> AudioLM:
    """Build the model of a stage on the CPU with so many layers of every stack; its weights mean nothing."""
    encoder = meta_encoder(config)
    for name, stack in stacks(encoder).items():
        del stack[depths[name] :]
    fill_with_zeros(encoder)
    decoder = thin_decoder(config, depths[DECODER], dtype)
    if isinstance(decoder, WhisperTextDecoder):
        bridge: Adapter = LinearBridge(encoder.dim, decoder.dim)
        model: AudioLM = CrossAttentionLM(encoder, bridge, decoder, config.train.label_chunk)
    else:
        adapter = make_adapter(config.adapter, encoder, decoder.dim)
        model = AudioLM(encoder, adapter, decoder, config.train.label_chunk)
    go_through_stages(model, config, stage)
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
        UserError: when it is neither miniature nor a folder.
    """
    if config.decoder.miniature is not None:
        small = config.decoder.miniature
        return qwen_config(small, small.vocabulary, 0, 0)
    try:
        found = AutoConfig.from_pretrained(config.decoder.path, revision=config.decoder.revision)
    except (OSError, ValueError) as problem:
        raise UserError(f"decoder.path: the config.json of {config.decoder.path} cannot be read") from problem
    return found if isinstance(found, WhisperConfig) else found.get_text_config()


def depth_of(architecture: Any) -> int:
    """Return the layers of a decoder; Whisper's configuration is of its encoder too."""
    whisper = isinstance(architecture, WhisperConfig)
    return int(architecture.decoder_layers if whisper else architecture.num_hidden_layers)


def thin_decoder(config: RunConfig, layers: int, dtype: torch.dtype) -> TextDecoder | WhisperTextDecoder:
    """Build the decoder with so many layers and a small vocabulary."""
    settings = config.decoder
    architecture: Any = copy.deepcopy(decoder_architecture(config))
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
    if getattr(architecture, "layer_types", None):
        architecture.layer_types = architecture.layer_types[:layers]
    lm = AutoModelForCausalLM.from_config(
        architecture, dtype=torch.float32 if settings.train == "full" else dtype, attn_implementation="sdpa"
    )
    decoder = TextDecoder(lm, settings.attention)
    make_trainable(decoder, decoder.lm.base_model, settings.train, settings.lora, 0)
    if settings.recompute:
        decoder.recompute()
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
