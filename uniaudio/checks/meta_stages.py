"""The stages of a run on an encoder without weights: what each of them would train."""

from __future__ import annotations

import torch
from torch import nn

from uniaudio.build.adapter import make_adapter
from uniaudio.build.encoders import EncoderHolder, sketch_encoder
from uniaudio.checks.cache_settings import refuse_useless_caches
from uniaudio.checks.stages import ParameterNames, check_stage_names
from uniaudio.config.run import RunConfig
from uniaudio.model.whisper_decoder import LinearBridge
from uniaudio.train.optim import component_of
from uniaudio.train.trainable import TrainableParameters, enter_stage

ANY_WIDTH = 8  # of a decoder; names do not depend on it


def sketch_stages(config: RunConfig) -> list[dict[str, int]]:
    """Go through all stages with an encoder without weights, so that what does not fit is told before any are read.

    Returns:
        For every stage the trained parameters of the encoder's components; nothing where an encoder is no plain local
        checkpoint.

    Raises:
        UserError: for expressions that match nothing of encoder or adapter, as far as they begin with one of them, see
            ``check_stage_names``, and for feature caches that no stage could use.
    """
    encoder = sketch_encoder(config)
    if encoder is None:
        return []
    holder = EncoderHolder(encoder)
    trained = []
    with torch.device("meta"):
        structure = TrainableParameters.of(holder)
        refuse_useless_caches(config, structure.usual)
        check_stage_names(config, ParameterNames.of(sketch_parts(config, holder), ("encoder", "adapter")))
        for index in range(len(config.stages)):
            enter_stage(holder, structure, config, index, whole=False)
            sizes: dict[str, int] = {}
            for name, parameter in holder.named_parameters():
                component = component_of(name, config)
                sizes[component] = sizes.get(component, 0) + parameter.numel() * parameter.requires_grad
            trained.append(sizes)
    return trained


def sketch_parts(config: RunConfig, holder: EncoderHolder) -> nn.Module:
    """Return an encoder and its adapter under the names that they have in a whole model; the decoder is left out."""
    parts = nn.Module()
    parts.encoder = holder.encoder
    if config.decoder.kind == "whisper":
        parts.adapter = LinearBridge(holder.encoder.dim, ANY_WIDTH)
    else:
        parts.adapter = make_adapter(config.adapter, holder.encoder, ANY_WIDTH)
    return parts
