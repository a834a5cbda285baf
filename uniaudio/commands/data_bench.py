"""``uniaudio data bench``: how fast a recipe's batches come, without any model."""

from __future__ import annotations

import os
import resource
import time
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console

from uniaudio.build.recipe_of_run import open_recipe
from uniaudio.console import make_console, make_table
from uniaudio.data.loader import make_loader
from uniaudio.data.mixture import Mixture
from uniaudio.data.recipe import Recipe
from uniaudio.tiny.text_lm import make_small_format
from uniaudio.types import SAMPLE_RATE
from uniaudio.units import MAXRSS_UNIT

BUDGET = 120.0  # seconds of a micro-batch, where there is no run config
TOKENS_PER_SECOND = 12.5


@dataclass(frozen=True)
class LoaderSpeed:
    """What a number of workers delivered."""

    workers: int
    audio_seconds_per_second: float
    questions_per_second: float
    longest_wait: float
    first_batch: float
    memory_mib: float


def measure_loading(mixture: Mixture, tasks: tuple[str, ...], workers: int, seconds: float) -> LoaderSpeed:
    """Take batches for so many seconds; the time to the first one is told apart."""
    started = time.perf_counter()
    steps = make_loader(mixture, tasks, 0, 1, workers, 2)
    next(steps)
    begin = last = time.perf_counter()
    audio, questions, longest = 0.0, 0, 0.0
    for step in steps:
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        audio += sum(batch.audio_seconds for batch in step.micro)
        questions += sum(len(batch.ids) for batch in step.micro)
        if now - begin > seconds:
            break
    used = last - begin
    memory = sum(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    mebibytes = memory * MAXRSS_UNIT / 2**20
    return LoaderSpeed(workers, audio / used, questions / used, longest, begin - started, mebibytes)


def bench_mixture(recipe: Recipe, budget: float, streams: int) -> Mixture:
    """Mix a recipe for a model that takes 12.5 tokens a second, with a tokenizer of the recipe's own texts."""
    recipe, sources = recipe.open_training_entries()
    return Mixture(
        recipe=recipe,
        sources=sources,
        format=make_small_format(recipe),
        count_slots=lambda samples: max(1, round(samples / SAMPLE_RATE * TOKENS_PER_SECOND)),
        seed=0,
        audio_seconds=budget,
        per_example=0.5,
        max_seconds=budget,
        micro_batches=1,
        streams=streams,
    )


def bench_recipe(
    name: str, seconds: float, workers: list[int] | None, console: Console | None = None
) -> list[LoaderSpeed]:
    """Print how many seconds of audio per second each number of workers delivers."""
    console = console or make_console()
    opened = open_recipe(name)
    recipe, config = opened.recipe, opened.config
    budget = config.stages[0].budget.audio_seconds if config is not None else BUDGET
    tried = workers or sorted({0, 1, max(1, (os.cpu_count() or 1) // 2), os.cpu_count() or 1})
    mixture = bench_mixture(recipe, budget, max(8, *tried))
    speeds = []
    for count in tried:
        with console.status(f"{count} workers, {seconds:g} s"):
            speeds.append(measure_loading(mixture, recipe.list_tasks(), count, seconds))
    columns = ("workers", "audio-s/s", "questions/s", "longest wait s", "first batch s", "memory MiB")
    table = make_table(f"recipe {recipe.name}, micro-batches of {budget:g} s", *columns, numbers=6)
    for speed in speeds:
        facts: dict[str, Any] = asdict(speed)
        digits = ("", ",.0f", ",.0f", ".3f", ".2f", ",.0f")
        table.add_row(*(format(value, spec) for value, spec in zip(facts.values(), digits, strict=True)))
    console.print(table)
    return speeds
