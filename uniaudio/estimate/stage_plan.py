"""What a stage of a run needs on one GPU under every engine, and the least that has to be recomputed to fit."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Self

import torch

from uniaudio.build.activation_checkpointing import DECODER, parts_set_to
from uniaudio.config.run import RunConfig
from uniaudio.data.recipe import Recipe
from uniaudio.estimate.operation_counter import Counted
from uniaudio.estimate.step_cost import StageCost, StepCost
from uniaudio.estimate.thin import WORDS, Blueprint, Clip

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
SAME = {"zero0": "ddp"}  # engines that spread as another one does
MARGIN = 0.9  # of a device's memory: engines' buffers, fragments and dearer micro-batches take the rest


@dataclass(frozen=True)
class StagePlan:
    """What a stage costs.

    Args:
        clip: the average example. clips: of them in a micro-batch. batch: figures of one micro-batch.
        per_clip: of one clip more. logits: bytes of the logits that exist at a time.
        cost: what all of that was taken from. recomputed: what recomputes, in all figures, by the names in the config.
        pass_hours: hours of audio of the recipe's sets, where all cards state them.
        stage_hours: hours that the stage draws.
    """

    name: str
    clip: Clip
    clips: float
    batch: Counted
    per_clip: Counted
    logits: float
    cost: StageCost
    pass_hours: float | None
    stage_hours: float
    recomputed: tuple[str, ...] = ()

    def recomputing(self, parts: Collection[str]) -> Self:
        """Return the plan when these parts recompute, too; one that cannot or keeps nothing changes nothing."""
        asked = {name: self.cost.again(name) for name in parts if name not in self.recomputed}
        new = {name: again.change for name, again in asked.items() if again is not None}
        batch, per_clip = self.batch, self.per_clip
        for change in new.values():
            batch, per_clip = batch + change.of(self.clips), per_clip + change.per_clip
        return replace(self, batch=batch, per_clip=per_clip, recomputed=(*self.recomputed, *new))

    @property
    def working(self) -> float:
        """Bytes of the layer that is made again when most others are kept.

        The decoder's layers come first in the backward; what they kept is gone when an encoder's turn comes.
        """
        if not self.recomputed:
            return 0.0
        changes = {name: again for name in self.recomputed if (again := self.cost.again(name)) is not None}
        freed = self.cost.decoder.of(self.clips).saved
        if DECODER in changes:
            freed += changes[DECODER].change.of(self.clips).saved
        sizes = [again.working(self.clips) - freed * (name != DECODER) for name, again in changes.items()]
        return max(*sizes, 0.0)

    @property
    def flops_per_second(self) -> float:
        """Operations for one second of audio."""
        return self.batch.flops / (self.clips * self.clip.seconds)

    def memory(self, engine: str, gpus: int) -> dict[str, float]:
        """Return the bytes of every part on one of so many GPUs, when gradients of a micro-batch before are there."""
        engine = SAME.get(engine, engine)
        spread = 1 if engine == "single" else gpus
        weights, gradients, moments = (
            self.batch.trained * (whole + shared / spread) for whole, shared in ENGINES[engine]
        )
        frozen = self.batch.frozen / (spread if engine in SPREAD else 1)
        activations = self.batch.saved + max(0.0, self.working - self.logits)  # logits are gone by then
        sizes = (weights, frozen, gradients, moments, activations, self.logits)
        return dict(zip(PARTS, sizes, strict=True))

    def total(self, engine: str, gpus: int) -> float:
        """Return the bytes of all parts together."""
        return sum(self.memory(engine, gpus).values())

    def cheapest(self, engine: str, gpus: int, limit: float, parts: Collection[str]) -> Self:
        """Return the plan with the fewest operations that stays within ``limit`` bytes; if none does, the smallest.

        Args:
            parts: that may recompute beside those that do already.
        """
        if self.total(engine, gpus) <= limit:
            return self
        able = [name for name in parts if self.recomputing([name]).recomputed != self.recomputed]
        options = [
            self.recomputing(chosen)
            for number in range(len(able) + 1)
            for chosen in combinations(able, number)
        ]
        options.sort(key=lambda plan: plan.batch.flops)
        smallest = min(options, key=lambda plan: plan.total(engine, gpus))
        return next((plan for plan in options if plan.total(engine, gpus) <= limit), smallest)

    def largest(self, engine: str, gpus: int, limit: float) -> float:
        """Return the seconds of audio of the largest micro-batch that stays within so many bytes; 0: none does."""
        free = limit - self.total(engine, gpus)
        more = free / self.per_clip.saved if self.per_clip.saved else float("inf")
        return max(0.0, (self.clips + more) * self.clip.seconds)


def plan_stage(
    config: RunConfig,
    index: int,
    clip: Clip,
    dtype: torch.dtype,
    gpus: int = 1,
    recipe: Recipe | None = None,
    blueprint: Blueprint | None = None,
) -> StagePlan:
    """Reckon one stage of a run, for clips that are all as long as the average one.

    What the config lets recompute in any case does.

    Args:
        dtype: of autocast and the frozen decoder; ``precision_on_gpu`` gives that of a GPU. gpus: a step has a
            micro-batch for each of them where the config does not say how many. recipe: whose sets have hours.
        blueprint: of the model; None reads the configs of local checkpoints.

    Raises:
        UserError: when there is no blueprint and a part is not a local folder.
    """
    stage = config.stages[index]
    blueprint = blueprint or Blueprint.sketched(config)
    cost = StageCost(blueprint, config, index, clip, dtype)
    clips = stage.budget.audio_seconds / (clip.seconds + stage.budget.per_example)
    whole, logits = with_vocabulary(blueprint, config, cost.whole, clip, clips, dtype)
    hours = None
    if recipe is not None:
        stated = {entry.dataset.name: entry.dataset.hours for entry in recipe.train}
        hours = None if None in stated.values() else sum(h or 0.0 for h in stated.values())
    heard = (config.train.micro_batches or gpus) * clips * clip.seconds / 3600
    plain = StagePlan(
        name=stage.name,
        clip=clip,
        clips=clips,
        batch=whole.of(clips),
        per_clip=whole.per_clip,
        logits=logits,
        cost=cost,
        pass_hours=hours,
        stage_hours=stage.hours if stage.hours is not None else heard * (stage.steps or 0),
    )
    return plain.recomputing(parts_set_to(config, True))


def with_vocabulary(
    blueprint: Blueprint, config: RunConfig, cost: StepCost, clip: Clip, clips: float, dtype: torch.dtype
) -> tuple[StepCost, float]:
    """Add what the whole vocabulary costs beyond that of the thin decoder, and return the bytes of the logits too.

    A frozen head makes its gradient chunk by chunk in the forward (``model/cross_entropy.py``): float32 logits and
    their log-softmax exist for one chunk, and in bfloat16 the product that goes back. A trained one keeps all of them.
    """
    decoder: Any = blueprint.decoder
    trained = config.decoder.train == "full"
    wide = 4 if trained else dtype.itemsize
    more = decoder.vocab_size - WORDS
    tables = 1 if getattr(decoder, "tie_word_embeddings", True) else 2
    numbers = float(more * decoder.hidden_size * tables)
    head = Counted(0, 0, numbers * trained, numbers * wide * (not trained))
    passes = 3 if trained else 2
    asked = Counted(0, 2.0 * passes * clip.answer * more * decoder.hidden_size, 0, 0)
    labels = clip.answer * clips
    whole = cost + StepCost(head, asked)
    if trained:
        return whole, labels * decoder.vocab_size * 8.0
    rows = min(config.train.label_chunk, labels)
    return whole, rows * decoder.vocab_size * (8.0 + (2 if wide == 2 else 0))
