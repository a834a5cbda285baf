"""What a run config says of its stages: what is trained on which recipe, how long, and what must not be forgotten."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from uniaudio.config.schema import Strict

Mode = Literal["full", "lora", "frozen"]


class Budget(Strict):
    """What one micro-batch may hold: seconds of audio (an example costs ``per_example`` more), and decoder tokens."""

    audio_seconds: PositiveFloat
    per_example: float = Field(default=1.0, ge=0)
    tokens: PositiveInt | None = None


class L2spConfig(Strict):
    """``weight / 2`` times the squared distance of the parameters matching ``on`` to where the stage began."""

    weight: PositiveFloat
    on: str = r"^encoder\."


class EwcConfig(Strict):
    """As ``l2sp``, every parameter weighed by its Fisher information on ``examples`` of an earlier ``recipe``.

    The recipe defaults to that of the stage before.
    """

    weight: PositiveFloat
    recipe: str | None = None
    examples: PositiveInt = 200
    on: str = r"^encoder\."


class DistillConfig(Strict):
    """``weight`` times the mean distance between the encoder's frames and those it gave when the stage began."""

    weight: PositiveFloat
    distance: Literal["mse", "cosine"] = "mse"


class EmaConfig(Strict):
    """A moving average of the trained tensors, kept beside them; ``RUN:ema`` names it."""

    decay: float = Field(default=0.999, gt=0, lt=1)


class ContinualConfig(Strict):
    """Means against forgetting within a stage. Replay belongs to the recipe, interpolation to ``uniaudio soup``."""

    l2sp: L2spConfig | None = None
    ewc: EwcConfig | None = None
    distill: DistillConfig | None = None
    ema: EmaConfig | None = None


class BalanceConfig(Strict):
    """Moves the mixture every ``every`` steps towards tasks whose validation loss still falls.

    A dataset's share is its share in the recipe times a factor within ``[1 / bound, bound]``. ``examples`` of each line
    of the recipe's ``evaluate`` are asked. ``rate`` is the largest change of a factor's logarithm at a time.
    """

    every: PositiveInt
    bound: float = Field(default=4.0, gt=1)
    rate: PositiveFloat = 0.5
    examples: PositiveInt = 64


class Stage(Strict):
    """A recipe, for so many optimizer steps or hours of audio.

    ``train`` says by regular expressions, searched for in the names of the parameters, what is trained in full, by
    low-rank updates or not at all; the last that matches holds, and what none matches is as the components say.
    ``lr`` sets rates likewise. ``layer_decay`` multiplies the rate once for every layer below the encoder's last.
    ``merge_lora`` adds the low-rank updates of earlier stages to the encoder's weights first. The checkpoint at
    the end of every stage is kept.
    """

    name: str
    recipe: str
    steps: PositiveInt | None = None
    hours: PositiveFloat | None = None
    warmup: int = Field(default=0, ge=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    final_lr_share: float = Field(default=0.0, ge=0, le=1)
    budget: Budget
    train: dict[str, Mode] = Field(default={})
    lr: dict[str, PositiveFloat] = Field(default={})
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    merge_lora: bool = False
    continual: ContinualConfig = ContinualConfig()
    balance: BalanceConfig | None = None

    @field_validator("train", "lr")
    @classmethod
    def are_expressions(cls, patterns: dict[str, object]) -> dict[str, object]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as problem:
                raise ValueError(f"'{pattern}' is no regular expression ({problem})") from problem
        return patterns

    @model_validator(mode="after")
    def length_fits(self) -> Stage:
        if (self.steps is None) == (self.hours is None):
            raise ValueError(f"stage {self.name} needs either `steps` or `hours` (of audio)")
        if self.steps is not None and self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup} is longer than the stage's {self.steps} steps")
        return self


class GuardConfig(Strict):
    """Sets that must not get worse: probed every ``every`` steps against where the run began.

    ``sets`` maps names to folders with a manifest.jsonl. More than ``max_drop`` points lost of a probe's accuracy is
    told (``alarm``) or ends the run with its checkpoint saved (``stop``).
    """

    sets: dict[str, str] = Field(min_length=1)
    every: PositiveInt
    probe: Literal["knn", "linear", "mlp"] = "knn"
    max_drop: float = Field(default=1.0, ge=0)
    action: Literal["alarm", "stop"] = "alarm"
