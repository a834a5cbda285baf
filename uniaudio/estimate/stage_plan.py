"""What a stage of a run needs on one GPU under every engine, and the least that has to be recomputed to fit."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Self

import torch
from torch import Tensor

from uniaudio.checks.first_rows import AverageClip
from uniaudio.config.run import RunConfig
from uniaudio.data.batching import compute_audio_cost
from uniaudio.data.recipe import Recipe
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.estimate.fake_model import Blueprint, build_fake_model, copy_without_values, make_equal_clips
from uniaudio.estimate.memory import PARTS, ContinualCopies, compute_parameter_bytes
from uniaudio.estimate.step_trace import LinearCost, StepTrace
from uniaudio.model.audio_lm import AudioLM
from uniaudio.train.activation_checkpointing import DECODER, get_part, list_parts
from uniaudio.train.continual.distill import Distiller
from uniaudio.train.trainable import explain_nothing_trained
from uniaudio.units import SECONDS_PER_HOUR

TRACED_CLIPS = 2  # of the step that is recorded


@dataclass(frozen=True)
class RecomputeEffect:
    """What it changes when a part recomputes.

    Args:
        cost: with it less without it: fewer bytes, more FLOPs. layer: what the largest layer keeps beyond its inputs
            while its backward runs.
    """

    cost: LinearCost
    layer: LinearCost


@dataclass(frozen=True)
class StagePlan:
    """What a stage costs.

    Args:
        clip: the average example. clips: of them in a micro-batch. trained: parameters. frozen: bytes of the others.
        copies: that continual-learning methods keep. cost: of a micro-batch. decoder: what the decoder's layers keep.
        changes: of every part that can recompute, by its name in the config. logits: bytes of the logits that exist at
            a time. recomputed: the parts that do.
        pass_hours: hours of audio of the splits that the recipe trains on, after augmentation, where all cards state
            them. stage_hours: hours that the stage draws.
    """

    name: str
    clip: AverageClip
    clips: float
    trained: int
    frozen: int
    copies: ContinualCopies
    cost: LinearCost
    decoder: LinearCost
    changes: Mapping[str, RecomputeEffect]
    logits: float
    pass_hours: float | None
    stage_hours: float
    recomputed: tuple[str, ...] = ()

    def add_recomputing(self, parts: Collection[str]) -> Self:
        """Return the plan when these parts recompute, too; one that cannot or keeps nothing changes nothing."""
        new = [name for name in parts if name in self.changes and name not in self.recomputed]
        cost = sum((self.changes[name].cost for name in new), self.cost)
        decoder = self.decoder + self.changes[DECODER].cost if DECODER in new else self.decoder
        return replace(self, cost=cost, decoder=decoder, recomputed=(*self.recomputed, *new))

    @property
    def working(self) -> float:
        """Bytes of the layer that is made again when most others are kept.

        The decoder's layers come first in the backward; what they kept is gone when an encoder's turn comes.
        """
        freed = {
            name: self.decoder.compute_saved_bytes(self.clips) * (name != DECODER) for name in self.recomputed
        }
        sizes = (
            self.changes[name].layer.compute_saved_bytes(self.clips) - freed[name] for name in self.recomputed
        )
        return max(*sizes, 0.0, 0.0)

    @property
    def flops(self) -> float:
        """FLOPs of one micro-batch."""
        return self.cost.flops * self.clips

    @property
    def flops_per_second(self) -> float:
        """FLOPs for one second of audio."""
        return self.cost.flops / self.clip.budget_seconds

    def compute_memory(self, engine: str, gpus: int) -> dict[str, float]:
        """Return the bytes of every part on one of so many GPUs, when gradients of a micro-batch before are there."""
        weights, frozen, gradients, moments = compute_parameter_bytes(engine, gpus, self.trained, self.frozen)
        # logits are gone by then
        activations = self.cost.compute_saved_bytes(self.clips) + max(0.0, self.working - self.logits)
        copies = self.copies.compute_bytes(engine, gpus)
        sizes = (weights, frozen, gradients, moments, copies, activations, self.logits)
        return dict(zip(PARTS, sizes, strict=True))

    def compute_total(self, engine: str, gpus: int) -> float:
        """Return the bytes of all parts together."""
        return sum(self.compute_memory(engine, gpus).values())

    def find_cheapest(self, engine: str, gpus: int, limit: float, parts: Collection[str]) -> Self:
        """Return the plan with the fewest FLOPs that stays within ``limit`` bytes; if none does, the smallest.

        Args:
            parts: that may recompute beside those that do already.
        """
        able = [name for name in parts if name in self.changes and name not in self.recomputed]
        options = [
            self.add_recomputing(chosen)
            for number in range(len(able) + 1)
            for chosen in combinations(able, number)
        ]
        options.sort(key=lambda plan: plan.flops)
        smallest = min(options, key=lambda plan: plan.compute_total(engine, gpus))
        return next((plan for plan in options if plan.compute_total(engine, gpus) <= limit), smallest)

    def find_largest(self, engine: str, gpus: int, limit: float) -> float:
        """Return the seconds of audio of the largest micro-batch that stays within so many bytes; 0: none does."""
        free = limit - self.compute_total(engine, gpus)
        more = free / self.cost.per_clip if self.cost.per_clip else float("inf")
        return max(0.0, (self.clips + more) * self.clip.budget_seconds)


def plan_stage(
    config: RunConfig,
    index: int,
    clip: AverageClip,
    dtype: torch.dtype,
    gpus: int = 1,
    recipe: Recipe | None = None,
    blueprint: Blueprint | None = None,
) -> StagePlan:
    """Estimate one stage of a run, for clips that are all as long as the average one.

    Memory is that of clips as long as augmentation can make them, hours are those of the expected length. What the
    config lets recompute in any case does.

    Args:
        dtype: of autocast and the frozen decoder; ``choose_gpu_precision`` gives that of a GPU. gpus: a step has a
            micro-batch for each of them where the config does not say how many. recipe: whose splits have hours.
        blueprint: of the model; None reads the configs of local checkpoints.

    Raises:
        UserError: when there is no blueprint and a part is not a local folder; when the model does not run without
            values, or the stage trains nothing.
    """
    stage = config.stages[index]
    blueprint = blueprint or Blueprint.from_config(config)
    trace, changes, model = trace_step(blueprint, config, index, clip, dtype)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not trained:
        raise UserError(explain_nothing_trained(stage))
    budget = stage.budget
    clips = budget.audio_seconds / compute_audio_cost(
        clip.seconds, clip.questions, budget.per_example, clip.stretch
    )
    step_hours = (config.train.micro_batches or gpus) * clips * clip.seconds / SECONDS_PER_HOUR
    plain = StagePlan(
        name=stage.name,
        clip=clip,
        clips=clips,
        trained=trained,
        frozen=sum(p.untyped_storage().nbytes() for p in model.parameters() if not p.requires_grad),
        copies=ContinualCopies.of(model, stage),
        cost=trace.cost(),
        decoder=trace.compute_layers_cost(DECODER),
        changes=changes,
        logits=compute_logits_bytes(blueprint, config, clip.answer * clips, dtype),
        pass_hours=None if recipe is None else sum_pass_hours(recipe),
        stage_hours=stage.hours if stage.hours is not None else step_hours * (stage.steps or 0),
    )
    return plain.add_recomputing(list_parts(config, True))


def sum_pass_hours(recipe: Recipe) -> float | None:
    """Return the hours of audio of the splits that a recipe trains on, as expected after augmentation; None where a
    card does not state them.
    """
    entries = {(entry.dataset.name, entry.split): entry for entry in recipe.train}.values()
    stated = [(entry.dataset.split(entry.split).hours, entry.mean_stretch) for entry in entries]
    known = [hours * stretch for hours, stretch in stated if hours is not None]
    return sum(known) if len(known) == len(stated) else None


def trace_step(
    blueprint: Blueprint, config: RunConfig, stage: int, clip: AverageClip, dtype: torch.dtype
) -> tuple[StepTrace, dict[str, RecomputeEffect], AudioLM]:
    """Run a step of a stage's model without values.

    Returns:
        Its trace, what every part changes that recomputes (a part that is frozen, with nothing trained below, keeps
        nothing anyway), and the model.

    Raises:
        UserError: when the model does not run so.
    """
    what = (
        f"memory and FLOPs cannot be estimated for a {blueprint.decoder.model_type} decoder in "
        f"{str(dtype).removeprefix('torch.')}"
    )
    with torch.random.fork_rng(devices=[]), convert_to_user_error(what):
        model = build_fake_model(blueprint, config, stage, dtype)
        distill = config.stages[stage].continual.distill
        teacher = None
        if distill is not None:
            teacher = Distiller(model, distill, encoder=copy_without_values(model.encoder))
        parts = {name: get_part(model, config, name) for name in (*config.encoders, DECODER)}
        parts = {name: part for name, part in parts.items() if part.can_recompute()}
        for part in parts.values():
            part.recompute()
        model.train()
        batch = make_equal_clips(model, clip, TRACED_CLIPS)

        def forward() -> Tensor:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model(batch)
                before = teacher.frames(batch) if teacher is not None else None
            total: Tensor = loss.total + sum(extra.value() for extra in loss.auxiliary.values())
            if teacher is not None and before is not None and loss.frames is not None:
                total = total + teacher.compute_total(before, loss.frames)
            return total

        trace = StepTrace(model, parts, TRACED_CLIPS, model.decoder.vocabulary)
        trace.run(forward)
    plain = trace.cost()
    changes = {}
    for name in parts:
        change = trace.cost([name]) + plain * -1
        if change.compute_saved_bytes(1) < 0:
            changes[name] = RecomputeEffect(change, trace.find_largest_layer(name))
    return trace, changes, model


def compute_logits_bytes(blueprint: Blueprint, config: RunConfig, labels: float, dtype: torch.dtype) -> float:
    """Return the bytes of the logits that exist at a time.

    A frozen head makes its gradient chunk by chunk in the forward (``model/cross_entropy.py``): float32 logits and
    their log-softmax exist for one chunk, and in bfloat16 the product that goes back. A trained one keeps all of them.
    """
    decoder: Any = blueprint.decoder
    if config.decoder.train == "full":
        return labels * decoder.vocab_size * 8.0
    rows = min(config.train.label_chunk, labels)
    return rows * decoder.vocab_size * (8.0 + (2 if dtype.itemsize == 2 else 0))
