"""What a micro-batch costs the model of a stage, with and without parts that recompute, from one and two layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from uniaudio.build.activation_checkpointing import DECODER
from uniaudio.config.run import RunConfig
from uniaudio.errors import convert_to_user_error
from uniaudio.estimate.operation_counter import Counted, count
from uniaudio.estimate.thin import Blueprint, Clip, equal_clips, stacks, thin_decoder, thin_model
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.train.trainable import named_encoders
from uniaudio.types import Batch

LARGE = 10**7  # parameters; smaller models compute faster than they tell shapes


@dataclass(frozen=True)
class StepCost:
    """Counted of a model: ``fixed`` in every micro-batch, ``per_clip`` for each clip of it on top."""

    fixed: Counted
    per_clip: Counted

    def __add__(self, other: StepCost) -> StepCost:
        return StepCost(self.fixed + other.fixed, self.per_clip + other.per_clip)

    def __sub__(self, other: StepCost) -> StepCost:
        return self + other * -1

    def __mul__(self, times: float) -> StepCost:
        return StepCost(self.fixed * times, self.per_clip * times)

    def of(self, clips: float) -> Counted:
        """Return what a micro-batch of so many clips keeps and computes."""
        return self.fixed + self.per_clip * clips


@dataclass(frozen=True)
class Again:
    """What it changes when a part recomputes: fewer bytes, more operations.

    Args:
        change: with it less without it. layers: of the part, whose activations exist one at a time.
    """

    change: StepCost
    layers: int

    def working(self, clips: float) -> float:
        """Return the bytes of one layer, which are there again while its backward runs."""
        return -self.change.of(clips).saved / self.layers


@dataclass(frozen=True)
class StageCost:
    """What a micro-batch of equal clips costs the model of a stage, counted when it is asked for, without its weights.

    Args:
        dtype: of the frozen decoder and, if it is not float32, of autocast.
    """

    blueprint: Blueprint
    config: RunConfig
    stage: int
    clip: Clip
    dtype: torch.dtype
    known: dict[tuple[str, str], StepCost] = field(default_factory=dict)
    changes: dict[str, Again | None] = field(default_factory=dict)

    @cached_property
    def depths(self) -> dict[str, int]:
        """Layers of every stack."""
        return self.blueprint.depths()

    @cached_property
    def whole(self) -> StepCost:
        """Of the model when nothing recomputes."""
        return sum(
            (self.a_layer(name) * (depth - 1) for name, depth in self.depths.items()), self.thin("", "")
        )

    @cached_property
    def decoder(self) -> StepCost:
        """Of the decoder's layers when they do not recompute."""
        return self.a_layer(DECODER) * self.depths[DECODER]

    def again(self, part: str) -> Again | None:
        """Return what changes when an encoder of the config or the decoder recomputes; None where nothing would.

        A part that is frozen, with nothing trained below, keeps nothing anyway.
        """
        if part not in self.changes:
            self.changes[part] = self.count_again(part)
        return self.changes[part]

    def count_again(self, part: str) -> Again | None:
        """Count for ``again``."""
        layers = self.layers_of(part)
        change = self.thin("", part) - self.thin("", "") if layers else None
        if change is None or change.of(1).saved >= 0:
            return None
        for name in stacks_of(self.blueprint, self.config, part):
            change = change + (self.a_layer(name, part) - self.a_layer(name)) * (self.depths[name] - 1)
        return Again(change, layers)

    def layers_of(self, part: str) -> int:
        """Return the layers of a part, of the shallowest encoder where it has several; 0: it cannot recompute."""
        if part == DECODER:
            able = thin_decoder(self.blueprint, self.config, 1, self.dtype).can_recompute()
            return self.depths[DECODER] * able
        encoder = named_encoders(self.config, self.blueprint.encoder)[part]
        single = [m for m in encoder.modules() if isinstance(m, AudioEncoder) and not hasattr(m, "encoders")]
        return max(1, min(len(m.layer_dims) for m in single) - 1) * encoder.can_recompute()

    def a_layer(self, name: str, recomputed: str = "") -> StepCost:
        """Return the cost of one layer of a stack."""
        return self.thin(name, recomputed) - self.thin("", recomputed)

    def thin(self, thick: str, recomputed: str) -> StepCost:
        """Count a model of one layer in each stack, two in the ``thick`` one, of which one part may recompute."""
        if (thick, recomputed) not in self.known:
            layers = {name: 2 if name == thick else 1 for name in self.depths}

            def make() -> AudioLM:
                return thin_model(self.blueprint, self.config, self.stage, layers, self.dtype, recomputed)

            what = (
                f"what a step costs cannot be counted for a {self.blueprint.decoder.model_type} decoder in "
                f"{str(self.dtype).removeprefix('torch.')} on a CPU"
            )
            with torch.random.fork_rng(devices=[]), convert_to_user_error(what):
                self.known[thick, recomputed] = counted(make, self.clip, self.dtype)
        return self.known[thick, recomputed]


def counted(make: Callable[[], AudioLM], clip: Clip, dtype: torch.dtype) -> StepCost:
    """Run forward and backward of a model over one and over two equal clips and count.

    A large one runs without numbers, which takes a fraction of the time, unless layers look at them to decide what to
    do, as routers do.
    """
    model = make()
    if sum(parameter.numel() for parameter in model.parameters()) > LARGE:
        try:
            forget_numbers(model)
            return one_and_two(model, clip, dtype)
        except RuntimeError:
            model = make()
    return one_and_two(model, clip, dtype)


def one_and_two(model: AudioLM, clip: Clip, dtype: torch.dtype) -> StepCost:
    one, two = (counted_once(model, equal_clips(model, clip, clips), dtype) for clips in (1, 2))
    return StepCost(one - (two - one), two - one)


def counted_once(model: AudioLM, batch: Batch, dtype: torch.dtype) -> Counted:
    """Count what a model keeps and computes of a batch."""

    def forward() -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = model(batch)
        total: Tensor = loss.total + sum(extra.value() for extra in loss.auxiliary.values())
        return total

    return count(model, forward)


def forget_numbers(model: nn.Module) -> None:
    """Put tensors that only have shape, dtype and device in the places of a model's own; a shared one stays shared."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}
    for part in model.modules():
        places: list[dict[str, Any]] = [part._parameters, part._buffers]
        for held in places:
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    bare = mode.from_tensor(tensor.detach())
                    parameter = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(bare, tensor.requires_grad) if parameter else bare
                held[name] = made[id(tensor)]


def stacks_of(blueprint: Blueprint, config: RunConfig, part: str) -> list[str]:
    """Return the names of a part's stacks of layers."""
    if part == DECODER:
        return [DECODER]
    return [name for name in stacks(blueprint.encoder) if config.fusion is None or name.split(".")[1] == part]
