"""The stages of a run on an encoder without weights: what each of them would train."""

from __future__ import annotations

import re

import torch

from uniaudio.assemble.encoders import EncoderHolder, sketch_encoder
from uniaudio.assemble.features import refuse_useless_caches
from uniaudio.config.run import RunConfig
from uniaudio.train.optim import component_of
from uniaudio.train.structure import Structure, enter_stage, refuse_nothing


def sketch_stages(config: RunConfig) -> list[dict[str, int]]:
    """Go through all stages with an encoder without weights, so that what does not fit is told before any are read.

    Returns:
        For every stage the trained parameters of the encoder's components; nothing where an encoder is no plain local
        checkpoint.

    Raises:
        UserError: for expressions of ``train`` that match nothing of the encoder, as far as they begin with it, and for
            feature caches that no stage could use.
    """
    encoder = sketch_encoder(config)
    if encoder is None:
        return []
    holder = EncoderHolder(encoder)
    trained = []
    with torch.device("meta"):
        structure = Structure.of(holder)
        refuse_useless_caches(config, structure.usual)
        for index, stage in enumerate(config.stages):
            for pattern in stage.train:
                if pattern.startswith(("^encoder", "encoder")):
                    matched = [name for name in structure.usual if re.search(pattern, name)]
                    refuse_nothing(matched, structure.usual, f"stages.{stage.name}.train", pattern)
            enter_stage(holder, structure, config, index, whole=False)
            sizes: dict[str, int] = {}
            for name, parameter in holder.named_parameters():
                component = component_of(name, config)
                sizes[component] = sizes.get(component, 0) + parameter.numel() * parameter.requires_grad
            trained.append(sizes)
    return trained
