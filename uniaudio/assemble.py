"""From a run config or a checkpoint to working objects: the only file that knows all the parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from uniaudio.config.run import DecoderConfig, RunConfig, load_run
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.data.tokens import ChatFormat
from uniaudio.distributed import barrier, is_main
from uniaudio.errors import UserError
from uniaudio.miniature.text_lm import miniature_decoder
from uniaudio.model.adapter import StackAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.decoder import load_decoder
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.whisper import load_whisper
from uniaudio.train.checkpoint import latest_checkpoint, load_checkpoint


@dataclass(frozen=True)
class LoadedModel:
    """A model with what is needed to talk to it."""

    model: AudioLM
    format: ChatFormat
    config: RunConfig


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def decoder_path(config: DecoderConfig, recipes: list[Recipe]) -> str:
    """The folder or name of the decoder; a miniature one is trained here on the texts of the recipes, once."""
    if config.miniature is None:
        return config.path
    if is_main():
        miniature_decoder(config.miniature, recipes)
    barrier()
    return str(miniature_decoder(config.miniature, recipes))
