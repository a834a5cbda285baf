"""At the start of a stage: what has to recompute so that its micro-batches fit the memory of a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from uniaudio.checks.first_rows import QUESTION, AverageClip, estimate_average_clip
from uniaudio.config.run import RunConfig
from uniaudio.data.recipe import Recipe
from uniaudio.distributed import gather_objects, is_main, world_size
from uniaudio.errors import UserError
from uniaudio.estimate.fake_model import Blueprint, choose_gpu_precision
from uniaudio.estimate.memory import MARGIN
from uniaudio.estimate.stage_plan import plan_stage
from uniaudio.model.audio_lm import AudioLM, cast_to_audio_lm
from uniaudio.train.activation_checkpointing import Recomputing, get_part, list_parts
from uniaudio.train.engines.base import Engine
from uniaudio.train.engines.precision import choose_precision
from uniaudio.units import GIB

SUPPOSED = AverageClip(10.0, QUESTION, 8)  # where the length of clips is not known


def find_usable_bytes(config: RunConfig, device: torch.device) -> float | None:
    """Return the bytes that the model, its optimizer and activations may take in a process; None: any number.

    They are nine tenths of ``train.memory_gib``, or of the GPU's memory, the smallest of all ranks'.
    """
    memory = None if config.train.memory_gib is None else config.train.memory_gib * GIB
    if memory is None and device.type == "cuda":
        memory = float(torch.cuda.get_device_properties(device).total_memory)
    stated = [size for size in gather_objects(memory) if size is not None]
    return MARGIN * min(stated) if stated else None


def make_chooser(
    config: RunConfig, recipes: Sequence[Recipe], built: AudioLM, device: torch.device
) -> Callable[[int, Engine], Recomputing]:
    """Return a function of stage index and engine that lets parts of the engine's model recompute, and says which.

    The main process estimates and decides for all. Where nothing is set to ``auto`` or memory has no bounds nothing
    is estimated.

    Args:
        built: the model as it is before the first stage. device: of the engine.
    """
    auto, always = list_parts(config, "auto"), tuple(list_parts(config, True))
    limit = find_usable_bytes(config, device) if auto else None
    blueprint = Blueprint.from_model(built) if limit is not None and is_main() else None
    dtype = (
        choose_gpu_precision(config) if device.type == "cuda" else choose_precision(config) or torch.float32
    )

    def estimate(index: int, engine: str) -> Recomputing:
        if limit is None or blueprint is None:
            return Recomputing(always)
        try:
            clip = estimate_clip(recipes[index], config.find_longest_clip(config.stages[index]))
            plain = plan_stage(config, index, clip, dtype, world_size(), blueprint=blueprint)
        except UserError as problem:
            return Recomputing(always, obstacle=str(problem))
        best = plain.find_cheapest(engine, world_size(), limit, auto)
        needed, without = (plan.compute_total(engine, world_size()) for plan in (best, plain))
        return Recomputing(best.recomputed, needed, without, limit, best.flops / plain.flops - 1)

    def choose(index: int, engine: Engine) -> Recomputing:
        chosen: Recomputing = gather_objects(estimate(index, engine.name))[0]
        for name in chosen.parts:
            if name not in always:
                get_part(cast_to_audio_lm(engine.plain), config, name).recompute()
        return chosen

    return choose


def estimate_clip(recipe: Recipe, longest: float) -> AverageClip:
    """Return the average example by the first rows of a recipe's sources, or a usual one where they do not tell."""
    try:
        return estimate_average_clip(recipe, longest)
    except UserError:
        return SUPPOSED
