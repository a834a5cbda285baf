"""``uniaudio plan``: memory by part under every engine, operations and hours, before a GPU is touched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from uniaudio.assemble.thin import WORDS, Clip, decoder_architecture, precision_on_gpu, step_cost
from uniaudio.checks import QUESTION, TOKENS_PER_WORD, check_entry
from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Stage
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.errors import UserError
from uniaudio.model.counted import Counted

GIB = 2**30
PARTS = ("weights", "frozen", "gradients", "optimizer", "activations", "logits")
# bytes of a trained parameter on one GPU: (whole on it, spread over all) of weights, gradients, moments and, in
# ZeRO-1 and 2, DeepSpeed's float32 copy of the weights that it updates; docs/scaling.md has the same table
ENGINES = {
    "single": ((4, 0), (4, 0), (8, 0)),
    "ddp": ((4, 0), (4, 0), (8, 0)),
    "zero1": ((4, 0), (4, 0), (0, 12)),
    "zero2": ((4, 0), (0, 4), (0, 12)),
    "zero3": ((0, 4), (0, 4), (0, 8)),
    "fsdp2": ((0, 4), (0, 4), (0, 8)),
}
SPREAD = ("zero3", "fsdp2")  # engines that spread the frozen weights too


@dataclass(frozen=True)
class Machine:
    """GPUs of one kind: their number, GiB of each, TFLOP/s in a large product, and the share of it in training."""

    gpus: int = 8
    memory_gib: float = 80.0
    tflops: float = 794.5
    efficiency: float = 0.4

    @property
    def flops(self) -> float:
        """Operations a second of one GPU in training."""
        return self.tflops * 1e12 * self.efficiency


@dataclass(frozen=True)
class StagePlan:
    """What a stage costs.

    Args:
        clip: the average example. clips: of them in a micro-batch. batch: figures of one micro-batch.
        per_clip: of one clip more. logits: bytes of the logits that exist at a time.
        pass_hours: hours of audio of the recipe's sets, where all cards state them.
        stage_hours: hours that the stage draws.
    """

    name: str
    clip: Clip
    clips: float
    batch: Counted
    per_clip: Counted
    logits: float
    pass_hours: float | None
    stage_hours: float

    @property
    def flops_per_second(self) -> float:
        """Operations for one second of audio."""
        return self.batch.flops / (self.clips * self.clip.seconds)

    def memory(self, engine: str, gpus: int) -> dict[str, float]:
        """Return the bytes of every part on one of so many GPUs, when gradients of a micro-batch before are there."""
        spread = 1 if engine == "single" else gpus
        weights, gradients, moments = (
            self.batch.trained * (whole + shared / spread) for whole, shared in ENGINES[engine]
        )
        frozen = self.batch.frozen / (spread if engine in SPREAD else 1)
        return dict(
            zip(PARTS, (weights, frozen, gradients, moments, self.batch.saved, self.logits), strict=True)
        )

    def largest(self, engine: str, gpus: int, limit: float) -> float:
        """Return the seconds of audio of the largest micro-batch that stays within so many bytes; 0: none does."""
        free = limit - sum(self.memory(engine, gpus).values())
        more = free / self.per_clip.saved if self.per_clip.saved else float("inf")
        return max(0.0, (self.clips + more) * self.clip.seconds)


def plan_stage(
    config: RunConfig, index: int, clip: Clip, dtype: torch.dtype, gpus: int = 1, recipe: Recipe | None = None
) -> StagePlan:
    """Reckon one stage of a run, for clips that are all as long as the average one.

    Args:
        dtype: of autocast and the frozen decoder; ``precision_on_gpu`` gives that of a GPU. gpus: a step has a
            micro-batch for each of them where the config does not say how many. recipe: whose sets have hours.

    Raises:
        UserError: as ``step_cost``.
    """
    stage = config.stages[index]
    cost = step_cost(config, index, clip, dtype)
    clips = stage.budget.audio_seconds / (clip.seconds + stage.budget.per_example)
    fixed, per_clip, logits = with_vocabulary(config, cost.fixed, cost.per_clip, clip, clips, dtype)
    hours = None
    if recipe is not None:
        stated = {entry.dataset.name: entry.dataset.hours for entry in recipe.train}
        hours = None if None in stated.values() else sum(h or 0.0 for h in stated.values())
    heard = (config.train.micro_batches or gpus) * clips * clip.seconds / 3600
    return StagePlan(
        name=stage.name,
        clip=clip,
        clips=clips,
        batch=fixed + per_clip * clips,
        per_clip=per_clip,
        logits=logits,
        pass_hours=hours,
        stage_hours=stage.hours if stage.hours is not None else heard * (stage.steps or 0),
    )


def with_vocabulary(
    config: RunConfig, fixed: Counted, per_clip: Counted, clip: Clip, clips: float, dtype: torch.dtype
) -> tuple[Counted, Counted, float]:
    """Add what the whole vocabulary costs beyond that of the thin decoder, and return the bytes of the logits too.

    A frozen head makes its gradient chunk by chunk in the forward (``model/cross_entropy.py``): float32 logits and
    their log-softmax exist for one chunk, and in bfloat16 the product that goes back. A trained one keeps all of them.
    """
    decoder: Any = decoder_architecture(config)
    trained = config.decoder.train == "full"
    wide = 4 if trained else dtype.itemsize
    more = decoder.vocab_size - WORDS
    tables = 1 if getattr(decoder, "tie_word_embeddings", True) else 2
    numbers = float(more * decoder.hidden_size * tables)
    head = Counted(0, 0, numbers * trained, numbers * wide * (not trained))
    passes = 3 if trained else 2
    asked = Counted(0, 2.0 * passes * clip.answer * more * decoder.hidden_size, 0, 0)
    labels = clip.answer * clips
    if trained:
        return fixed + head, per_clip + asked, labels * decoder.vocab_size * 8.0
    rows = min(config.train.label_chunk, labels)
    return fixed + head, per_clip + asked, rows * decoder.vocab_size * (8.0 + (2 if wide == 2 else 0))


def average_clip(recipe: Recipe) -> Clip:
    """Return the average example of a recipe by the first rows of its sources.

    Raises:
        UserError: for rows that cannot be used, or sources that do not tell the length of a clip without decoding it.
    """
    seen = [check_entry(entry) for entry in recipe.train]
    if unknown := [pairing.name for pairing in seen if pairing.seconds is None]:
        raise UserError(f"{unknown[0]}: the length of its clips is not known; give --seconds")
    shares = recipe.train_shares()
    seconds = sum(share * float(p.seconds or 0) for share, p in zip(shares, seen, strict=True))
    words = sum(share * p.answer_words for share, p in zip(shares, seen, strict=True))
    return Clip(seconds, QUESTION, round(words * TOKENS_PER_WORD) + 1)


def show_plan(
    config: RunConfig, machine: Machine, clip: Clip | None, console: Console | None = None
) -> list[StagePlan]:
    """Print the plan of every stage.

    Args:
        clip: the average example; None takes it from the first rows of the recipe's sources.

    Raises:
        UserError: as ``plan_stage`` and ``average_clip``.
    """
    console = console or Console()
    dtype = precision_on_gpu(config)
    plans = []
    for index, stage in enumerate(config.stages):
        recipe = load_recipe(stage.recipe, near=config.folder) if clip is None else None
        average = average_clip(recipe) if recipe is not None else clip
        assert average is not None
        plan = plan_stage(config, index, average, dtype, machine.gpus, recipe)
        plans.append(plan)
        console.print(memory_table(plan, stage, machine))
        for line in speed_lines(plan, machine):
            console.print(line, highlight=False)
    console.print(
        f"reckoned at {machine.efficiency:.0%} of {machine.tflops:g} TFLOP/s in {str(dtype).removeprefix('torch.')}; "
        f"buffers of engines, the working memory of single operations and fragments come on top: leave a tenth free",
        style="dim",
        highlight=False,
    )
    return plans


def memory_table(plan: StagePlan, stage: Stage, machine: Machine) -> Table:
    """Lay out GiB by part and engine; what does not fit is red and has a largest micro-batch below the budget."""
    title = (
        f"stage {plan.name}: GiB on one of {machine.gpus} GPUs, micro-batches of {stage.budget.audio_seconds:g} s "
        f"({plan.clips:.1f} clips of {plan.clip.seconds:.1f} s)"
    )
    table = Table(title=title, title_justify="left")
    for column in ("engine", *PARTS, "total", "largest, s"):
        table.add_column(column, justify="left" if column == "engine" else "right")
    limit = machine.memory_gib * GIB
    for engine in ENGINES:
        parts = plan.memory(engine, machine.gpus)
        total = sum(parts.values())
        numbers = (f"{value / GIB:.2f}" for value in (*parts.values(), total))
        largest = plan.largest(engine, machine.gpus, limit)
        told = f"{largest:.0f}" if largest < float("inf") else "any"
        table.add_row(engine, *numbers, told, style="" if total <= limit else "red")
    return table


def speed_lines(plan: StagePlan, machine: Machine) -> Sequence[str]:
    """Say operations, throughput and hours."""
    speed = machine.flops / plan.flops_per_second
    hours = plan.stage_hours / speed
    lines = [
        f"{plan.batch.trained:,.0f} parameters are trained; {plan.flops_per_second / 1e9:.1f} GFLOP for a second of "
        f"audio, {speed:,.0f} hours of audio an hour and GPU",
        f"the stage hears {plan.stage_hours:,.1f} h: {hours:,.2f} GPU-hours, {hours / machine.gpus:,.2f} hours on "
        f"{machine.gpus} GPUs",
    ]
    if plan.pass_hours is not None:
        lines.append(
            f"all sets of the recipe once: {plan.pass_hours:,.1f} h, {plan.pass_hours / speed:,.2f} GPU-hours"
        )
    return lines
