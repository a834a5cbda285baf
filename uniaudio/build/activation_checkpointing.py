"""The parts of a model that can make their activations again, by their names in the run config."""

from __future__ import annotations

from typing import Any

from uniaudio.config.run import RunConfig
from uniaudio.model.audio_lm import AudioLM
from uniaudio.train.trainable import list_named_encoders

DECODER = "decoder"  # beside the names of the encoders


def get_part(model: AudioLM, config: RunConfig, name: str) -> Any:
    """Return the decoder or an encoder of a model by its name in the config."""
    return model.decoder if name == DECODER else list_named_encoders(config, model.encoder)[name]


def list_parts(config: RunConfig, value: str | bool) -> list[str]:
    """Return the encoders whose ``recompute`` is so, and the decoder if its is."""
    given: dict[str, str | bool] = {name: part.recompute for name, part in config.encoders.items()}
    given[DECODER] = config.decoder.recompute
    return [name for name, setting in given.items() if setting == value]
