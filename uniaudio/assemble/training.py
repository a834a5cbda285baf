"""From a run config to a run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from uniaudio.assemble.features import refuse_useless_caches
from uniaudio.assemble.fitting import chooser
from uniaudio.assemble.guarding import guard_complaints, guarded_sets, keep_reference
from uniaudio.assemble.judging import ask_settings, evaluate_recipe, validation_losses, without_answers
from uniaudio.assemble.models import LoadedModel, build_model, decoder_path, stage_recipes
from uniaudio.assemble.stages import sketch_stages
from uniaudio.config.run import RunConfig
from uniaudio.data.loader import PlanState, StepBatch, joined_states, make_loader, sharing
from uniaudio.data.order import number
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.data.source import open_source
from uniaudio.data.stream import Mixture
from uniaudio.data.tokens import ChatFormat
from uniaudio.distributed import is_main, part_ways, rank, telling_of_lost_processes, world_size
from uniaudio.errors import UserError
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.recall import recalled_stores
from uniaudio.train.balance import Balance, shares
from uniaudio.train.checkpoint import latest_checkpoint
from uniaudio.train.engines.launch import building_device, make_accelerator
from uniaudio.train.loop import train
from uniaudio.train.parts import TrainParts
from uniaudio.train.structure import Structure
from uniaudio.types import Batch


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
    sketch_stages(config)
    sets = guarded_sets(config)
    accelerator = make_accelerator(config)
    kept = run_dir / "decoder"
    path = decoder_path(config, recipes, kept, train=not (continued and kept.is_dir()))
    device = building_device(accelerator)
    first: list[LoadedModel] = [build_model(config, path, device)]
    # ``sketch_stages`` has done this where it had a sketch
    refuse_useless_caches(config, Structure.of(first[0].model).usual)
    format, bases = first[0].format, first[0].bases
    tasks = tuple(sorted({task for recipe in recipes for task in recipe.tasks()}))
    has_auxiliary = bool(getattr(first[0].model.encoder, "auxiliary", ()))

    def build() -> nn.Module:
        return (first.pop() if first else build_model(config, path, device)).model

    def open_steps(
        index: int, model: nn.Module, balance: Balance, state: dict[str, Any] | None
    ) -> Iterator[StepBatch]:
        return stage_steps(config, recipes[index], index, format, model, tasks, balance, state)

    def examples(index: int, model: nn.Module, recipe: str | None) -> Iterator[Batch]:
        return single_examples(config, recipes, index, format, model, tasks, recipe)

    def validation(index: int, model: nn.Module, count: int, shared: bool) -> dict[str, float]:
        loaded = LoadedModel(audio_lm(model), format, config, bases)
        return validation_losses(loaded, recipes[index], count, shared)

    def evaluate(model: nn.Module, shared: bool) -> dict[str, Any]:
        loaded = LoadedModel(audio_lm(model), format, config, bases)
        settings = ask_settings(config, shared=shared)
        return without_answers(evaluate_recipe(loaded, recipes[-1], settings))

    def entry_tasks(index: int) -> dict[str, list[str]]:
        return {e.name: [t.task for t in e.templates] for e in recipes[index].train}

    def guard(model: nn.Module) -> list[str]:
        assert config.guard is not None
        return guard_complaints(audio_lm(model).encoder, sets, config.guard, run_dir)

    if sets and not continued and is_main():
        keep_reference(audio_lm(first[0].model).encoder, sets, config, run_dir)
    parts = TrainParts(
        build=build,
        open_steps=open_steps,
        join_states=joined_states,
        tasks=tasks,
        bases=bases,
        has_auxiliary=has_auxiliary,
        examples=examples,
        entry_tasks=entry_tasks,
        validation=validation,
        recompute=chooser(config, recipes, first[0].model, accelerator.device),
        guard=guard if sets else None,
        evaluate=evaluate,
    )
    with telling_of_lost_processes():
        code = train(parts, config, accelerator, continued)
        part_ways()
    return code


def audio_lm(model: nn.Module) -> AudioLM:
    assert isinstance(model, AudioLM)
    return model


def stage_steps(
    config: RunConfig,
    recipe: Recipe,
    index: int,
    format: ChatFormat,
    model: nn.Module,
    tasks: tuple[str, ...],
    balance: Balance,
    state: dict[str, Any] | None,
) -> Iterator[StepBatch]:
    """Open the endless steps of a stage for this rank, from a saved position on.

    Every round of an adaptive mixture has its own shares and its own order.
    """
    mixture = stage_mixture(config, recipe, index, format, audio_lm(model))
    if balance.round:
        usual = {entry.name: entry.share for entry in recipe.train}
        moved = shares(usual, balance.factors)
        entries = tuple(replace(entry, share=moved[entry.name]) for entry in recipe.train)
        mixture = replace(
            mixture,
            recipe=replace(recipe, train=entries),
            seed=number(mixture.seed, "round", balance.round),
        )
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
        recalled_stores(model),
    )


def stage_mixture(
    config: RunConfig, recipe: Recipe, index: int, format: ChatFormat, model: AudioLM
) -> Mixture:
    """Open the sources of a stage's recipe and mix them as the config says."""
    budget, data = config.stages[index].budget, config.data
    micro_batches = config.train.micro_batches or world_size()
    return Mixture(
        recipe=recipe,
        sources=[open_source(entry.dataset, entry.split) for entry in recipe.train],
        format=format,
        slots_for=model.slots_for,
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
        shares_prefixes=model.shares_prefixes,
    )


def single_examples(
    config: RunConfig,
    recipes: list[Recipe],
    index: int,
    format: ChatFormat,
    model: nn.Module,
    tasks: tuple[str, ...],
    name: str | None,
) -> Iterator[Batch]:
    """Yield batches of one row each of a named recipe, or that of the stage before; the same on every rank.

    Raises:
        UserError: when there is no stage before and none is named.
    """
    stage = config.stages[index]
    if name is None and index == 0:
        raise UserError(
            f"stages.{stage.name}.continual.ewc.recipe: the first stage has none before it; name the old recipe"
        )
    recipe = load_recipe(name, near=config.folder) if name is not None else recipes[index - 1]
    mixture = stage_mixture(config, recipe, index, format, audio_lm(model))
    alone = replace(
        mixture, audio_seconds=1e-6, tokens=None, micro_batches=1
    )  # every row is above this budget
    known = tuple(sorted({*tasks, *recipe.tasks()}))
    for step in make_loader(alone, known, 0, 1, 0, 2):
        yield from step.micro
