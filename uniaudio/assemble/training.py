"""From a run config to a run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from uniaudio.assemble.encoders import sketch_encoder
from uniaudio.assemble.judging import evaluate_recipe
from uniaudio.assemble.models import LoadedModel, build_model, decoder_path, stage_recipes
from uniaudio.config.run import RunConfig
from uniaudio.data.loader import PlanState, StepBatch, joined_states, make_loader, sharing
from uniaudio.data.recipe import Recipe
from uniaudio.data.source import open_source
from uniaudio.data.stream import Mixture
from uniaudio.data.tokens import ChatFormat
from uniaudio.distributed import is_main, rank, world_size
from uniaudio.errors import UserError
from uniaudio.model.audio_lm import AudioLM
from uniaudio.train.checkpoint import latest_checkpoint
from uniaudio.train.engine import make_accelerator
from uniaudio.train.loop import TrainParts, train


def run_training(config: RunConfig, resume: str | None) -> int:
    """Train as the config says and return the exit code.

    Args:
        resume: None starts (and refuses a folder with a run in it), "yes" continues, "auto" does what fits.

    Raises:
        UserError: for every mistake that can be seen before the first step, and for those of the data.
    """
    run_dir = Path(config.output_dir)
    continued = resume == "yes" or (resume == "auto" and latest_checkpoint(run_dir) is not None)
    if resume is None and latest_checkpoint(run_dir) is not None:
        raise UserError(
            f"{run_dir} already holds a run: continue it with --resume, or set another output_dir"
        )
    recipes = stage_recipes(config)
    sketch_encoder(config)
    accelerator = make_accelerator(config)
    kept = run_dir / "decoder"
    path = decoder_path(config, recipes, kept, train=not (continued and kept.is_dir()))
    loaded = build_model(config, path, accelerator.device)
    tasks = tuple(sorted({task for recipe in recipes for task in recipe.tasks()}))

    def open_steps(index: int, state: dict[str, Any] | None) -> Iterator[StepBatch]:
        return stage_steps(config, recipes[index], index, loaded, tasks, state)

    def evaluate(model: nn.Module) -> dict[str, Any]:
        assert isinstance(model, AudioLM)
        results = evaluate_recipe(LoadedModel(model, loaded.format, config, loaded.bases), recipes[-1], None)
        return {name: {k: v for k, v in r.items() if k != "answers"} for name, r in results.items()}

    has_auxiliary = bool(getattr(loaded.model.encoder, "auxiliary", ()))
    parts = TrainParts(loaded.model, open_steps, joined_states, tasks, loaded.bases, has_auxiliary, evaluate)
    return train(parts, config, accelerator, continued)


def stage_steps(
    config: RunConfig,
    recipe: Recipe,
    index: int,
    loaded: LoadedModel,
    tasks: tuple[str, ...],
    state: dict[str, Any] | None,
) -> Iterator[StepBatch]:
    """Open the endless steps of a stage for this rank, from a saved position on."""
    mixture = stage_mixture(config, recipe, index, loaded.format, loaded.model.slots_for)
    told = sharing(mixture, config.data.workers, world_size())
    if told and is_main() and state is None:
        Console().print(told, style="yellow", highlight=False)
    return make_loader(
        mixture,
        tasks,
        rank(),
        world_size(),
        config.data.workers,
        config.data.prefetch,
        PlanState.from_json(state) if state else None,
    )


def stage_mixture(
    config: RunConfig, recipe: Recipe, index: int, format: ChatFormat, slots_for: Callable[[int], int]
) -> Mixture:
    """Open the sources of a stage's recipe and mix them as the config says."""
    budget, data = config.stages[index].budget, config.data
    micro_batches = config.train.micro_batches or world_size()
    return Mixture(
        recipe=recipe,
        sources=[open_source(entry.dataset, entry.split) for entry in recipe.train],
        format=format,
        slots_for=slots_for,
        seed=config.seed + index,
        audio_seconds=budget.audio_seconds,
        per_example=budget.per_example,
        tokens=budget.tokens,
        max_seconds=data.max_seconds or budget.audio_seconds,
        micro_batches=micro_batches,
        streams=-(-data.streams // micro_batches) * micro_batches,
        pool=data.pool,
        window=data.window,
        patience=data.patience,
    )
