"""Whether frames of frozen encoders are worth keeping, and how much room they take."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from uniaudio.build.model import load_stage_recipes
from uniaudio.config.path_variables import CACHE_VARIABLE, get_cache_root
from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Mode
from uniaudio.errors import UserError
from uniaudio.model.cached_encoder import find_cached_parts, has_cache
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.outputs import check_output_folder
from uniaudio.train.trainable import choose_modes
from uniaudio.units import SECONDS_PER_HOUR


def refuse_useless_caches(config: RunConfig, usual: Mapping[str, Mode]) -> None:
    """Refuse a cache that no stage could use, and augmentation in a stage that uses one.

    An encoder's frames are kept in the stages that train no parameter of it, whatever stages before did: their name is
    the hash of the weights as they are then.

    Args:
        usual: how the components train every parameter, see ``TrainableParameters``.

    Raises:
        UserError: naming encoder and stage.
    """
    if not has_cache(config):
        return
    recipes = load_stage_recipes(config)
    for name, settings in config.encoders.items():
        if not settings.cache:
            continue
        stages = list_frozen_stages(config, usual, name)
        if not stages:
            raise UserError(
                f"encoders.{name}.cache stores the frames of a frozen encoder, but every stage "
                "trains this one; set train: frozen, or leave `cache` out"
            )
        for index in stages:
            changed = [entry.name for entry in recipes[index].train if entry.augmenter is not None]
            if changed:
                raise UserError(
                    f"encoders.{name}.cache: stage {config.stages[index].name} augments the clips "
                    f"of {changed[0]} (recipe {recipes[index].name}), so the same frames never "
                    "occur again; leave out `augment` or `cache`"
                )


def describe_unusable_cache(config: RunConfig) -> list[str]:
    """Return a sentence where a run keeps frames or a miniature decoder and the cache cannot be written.

    It is no mistake where all is in the cache already, such as in one that others share.
    """
    if not has_cache(config) and config.decoder.miniature is None:
        return []
    try:
        check_output_folder(get_cache_root(), CACHE_VARIABLE)
    except UserError as problem:
        return [str(problem)]
    return []


def list_frozen_stages(config: RunConfig, usual: Mapping[str, Mode], name: str) -> list[int]:
    """Return the stages that train nothing of an encoder."""
    prefix = "encoder." if config.fusion is None else f"encoder.encoders.{name}."
    modes = [choose_modes(usual, stage, whole=False) for stage in config.stages]
    return [
        index
        for index, mode_of in enumerate(modes)
        if all(mode == "frozen" for plain, mode in mode_of.items() if plain.startswith(prefix))
    ]


def describe_cache_sizes(encoder: AudioEncoder, config: RunConfig) -> list[str]:
    """Return a sentence on the disk that the frames of each encoder take."""
    lines = []
    for name, part in find_cached_parts(encoder, config).items():
        dtype = torch.bfloat16 if config.encoders[name].cache == "bfloat16" else torch.float32
        size = part.dim * part.frame_rate * dtype.itemsize * SECONDS_PER_HOUR
        lines.append(f"encoders.{name}.cache: {size / 1e6:,.0f} MB on disk per hour of distinct audio")
    return lines
