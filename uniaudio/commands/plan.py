"""``uniaudio plan``: memory by part under every engine, operations and hours, before a GPU is touched."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from uniaudio.checks.first_rows import AverageClip, estimate_average_clip
from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Stage
from uniaudio.console import make_console, make_table
from uniaudio.data.recipe import load_recipe
from uniaudio.estimate.fake_model import Blueprint, choose_gpu_precision
from uniaudio.estimate.gpus import Machine
from uniaudio.estimate.memory import ENGINES, MARGIN, PARTS, ContinualCopies
from uniaudio.estimate.stage_plan import StagePlan, plan_stage
from uniaudio.train.activation_checkpointing import list_parts
from uniaudio.units import GIB


def show_plan(
    config: RunConfig, machine: Machine, clip: AverageClip | None, console: Console | None = None
) -> list[StagePlan]:
    """Print the plan of every stage.

    Args:
        clip: the average example; None takes it from the first rows of the recipe's sources.

    Raises:
        UserError: as ``plan_stage`` and ``estimate_average_clip``.
    """
    console = console or make_console()
    dtype = choose_gpu_precision(config)
    blueprint = Blueprint.from_config(config)
    auto = list_parts(config, "auto")
    usable = MARGIN * GIB * (config.train.memory_gib or machine.memory_gib)
    plans = []
    for index, stage in enumerate(config.stages):
        recipe = load_recipe(stage.recipe, near=config.folder) if clip is None else None
        average = (
            estimate_average_clip(recipe, config.find_longest_clip(stage)) if recipe is not None else clip
        )
        assert average is not None
        plan = plan_stage(config, index, average, dtype, machine.gpus, recipe, blueprint)
        plans.append(plan)
        console.print(build_memory_table(plan, stage, machine))
        if text := describe_recomputing(plan, auto):
            console.print(build_recompute_table(plan, machine, auto, usable))
            console.print(text)
        for line in describe_speed(plan, machine):
            console.print(line)
    console.print(
        f"estimated at {machine.efficiency:.0%} of {machine.tflops:g} TFLOP/s in "
        f"{str(dtype).removeprefix('torch.')}; engine buffers, the working memory of single "
        "operations and fragmentation are not included: leave a tenth free",
        style="dim",
    )
    return plans


def build_memory_table(plan: StagePlan, stage: Stage, machine: Machine) -> Table:
    """Lay out GiB by part and engine; what does not fit is red and has a largest micro-batch below the budget."""
    longest = f", at most {plan.clip.budget_seconds:.1f} s after `speed`" if plan.clip.stretch > 1 else ""
    place = "the GPU" if machine.gpus == 1 else f"each of {machine.gpus} GPUs"
    title = (
        f"stage {plan.name}: GiB on {place}, micro-batches of {stage.budget.audio_seconds:g} s "
        f"({plan.clips:.1f} clips of {plan.clip.seconds:.1f} s{longest})"
    )
    shown = [part for part in PARTS if part != "continual" or plan.copies != ContinualCopies()]
    table = make_table(title, "engine", *shown, "total", "largest, s", numbers=len(shown) + 2)
    limit = machine.memory_gib * GIB
    for engine in ENGINES:
        parts = plan.compute_memory(engine, machine.gpus)
        total = sum(parts.values())
        numbers = (f"{value / GIB:.2f}" for value in (*(parts[part] for part in shown), total))
        largest = plan.find_largest(engine, machine.gpus, limit)
        text = f"{largest:.0f}" if largest < float("inf") else "any"
        table.add_row(engine, *numbers, text, style="" if total <= limit else "red")
    return table


def build_recompute_table(plan: StagePlan, machine: Machine, auto: Sequence[str], usable: float) -> Table:
    """Lay out the GiB of every engine without recomputing and with all that may, and what is chosen.

    Args:
        auto: parts that recompute if need be, so that ``usable`` bytes suffice.
    """
    title = f"activation checkpointing, to fit into {usable / GIB:.1f} GiB ({MARGIN:.0%} of the memory)"
    table = Table(title=title, title_justify="left")
    for column in ("engine", "as set", "with all", "chosen by auto", "GiB", "more FLOPs"):
        table.add_column(column, justify="left" if column in ("engine", "chosen by auto") else "right")
    least = plan.add_recomputing(auto)
    for engine in ENGINES:
        chosen = plan.find_cheapest(engine, machine.gpus, usable, auto)
        names = [name for name in chosen.recomputed if name not in plan.recomputed]
        sizes = [f"{p.compute_total(engine, machine.gpus) / GIB:.2f}" for p in (plan, least, chosen)]
        fits = chosen.compute_total(engine, machine.gpus) <= usable
        more = f"{chosen.flops / plan.flops - 1:.1%}"
        text = ", ".join(names) or "nothing"
        table.add_row(engine, *sizes[:2], text, sizes[2], more, style="" if fits else "red")
    return table


def describe_recomputing(plan: StagePlan, auto: Sequence[str]) -> str:
    """Say what each part saves and costs when it recomputes; an empty text where none can."""
    text = []
    for name in auto:
        with_it = plan.add_recomputing([name])
        if with_it.recomputed != plan.recomputed:
            saved = plan.compute_total("single", 1) - with_it.compute_total("single", 1)
            more = with_it.flops / plan.flops - 1
            text.append(f"{name} {saved / GIB:.2f} GiB less for {more:.1%} more FLOPs")
    return f"activation checkpointing: {'; '.join(text)}" if text else ""


def describe_speed(plan: StagePlan, machine: Machine) -> Sequence[str]:
    """Say operations, throughput and hours."""
    speed = machine.flops / plan.flops_per_second
    hours = plan.stage_hours / speed
    lines = [
        f"{plan.trained:,.0f} parameters are trained; {plan.flops_per_second / 1e9:.1f} GFLOP per "
        f"second of audio, {speed:,.0f} hours of audio per GPU-hour",
        f"the stage trains on {plan.stage_hours:,.1f} h: {hours:,.2f} GPU-hours, {hours / machine.gpus:,.2f} hours on "
        f"{machine.gpus} GPU{'s' if machine.gpus > 1 else ''}",
    ]
    if plan.pass_hours is not None:
        lines.append(
            f"all datasets of the recipe once: {plan.pass_hours:,.1f} h, "
            f"{plan.pass_hours / speed:,.2f} GPU-hours"
        )
    return lines
