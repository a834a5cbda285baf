"""Whether frames of frozen encoders are worth keeping, and how much room they take."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from uniaudio.build.encoders import EncoderHolder
from uniaudio.build.model import load_stage_recipes
from uniaudio.config.path_variables import CACHE_VARIABLE, get_cache_root
from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Mode
from uniaudio.distributed import world_size
from uniaudio.errors import UserError
from uniaudio.model.cached_encoder import find_cached_parts, has_cache
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.outputs import check_output_folder
from uniaudio.train.trainable import TrainableParameters, choose_modes
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
    return [
        f"encoders.{name}.cache: {format_bytes(size)} on disk per hour of distinct audio"
        for name, size in measure_cached_hours(encoder, config).items()
    ]


def describe_cached_crops(encoder: AudioEncoder, config: RunConfig) -> list[str]:
    """Return a sentence for each encoder and stage that would keep the frames of crops.

    A crop is taken at a random place, so its frames are hardly ever read again. It is no mistake where few clips are
    long enough to be cropped.
    """
    if not has_cache(config):
        return []
    recipes, usual = load_stage_recipes(config), TrainableParameters.of(EncoderHolder(encoder)).usual
    notes = []
    for name, size in measure_cached_hours(encoder, config).items():
        for index in list_frozen_stages(config, usual, name):
            stage, entries = config.stages[index], recipes[index].train
            cropped = [e.name for e in entries if e.long_clips is not None and e.long_clips.how == "crop"]
            micro_batches = config.train.micro_batches or world_size()
            seconds = (stage.steps or 0) * micro_batches * stage.budget.audio_seconds
            hours = stage.hours if stage.hours is not None else seconds / SECONDS_PER_HOUR
            if cropped:
                notes.append(
                    f"encoders.{name}.cache: stage {stage.name} crops long clips of {', '.join(cropped)} at random "
                    f"places, so their frames are stored anew with every draw, up to {format_bytes(size * hours)} in "
                    "this stage; use `long_clips: windows` or `skip`, or leave out `cache`"
                )
    return notes


def measure_cached_hours(encoder: AudioEncoder, config: RunConfig) -> dict[str, float]:
    """Return the bytes that the frames of an hour of audio take on disk, by the name of the encoder."""
    sizes = {}
    for name, part in find_cached_parts(encoder, config).items():
        dtype = torch.bfloat16 if config.encoders[name].cache == "bfloat16" else torch.float32
        sizes[name] = part.dim * part.frame_rate * dtype.itemsize * SECONDS_PER_HOUR
    return sizes


def format_bytes(size: float) -> str:
    """Return a size on disk in MB, and above 10,000 of them in GB."""
    return f"{size / 1e6:,.0f} MB" if size < 1e10 else f"{size / 1e9:,.0f} GB"
