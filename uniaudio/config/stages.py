"""What a run config says of its stages: what is trained on which recipe, how long, and what must not be forgotten."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt, field_validator, model_validator

from uniaudio.config.records import Strict, check_expression

Mode = Literal["full", "lora", "frozen"]
Expression = Annotated[str, AfterValidator(check_expression)]


class Budget(Strict):
    """The size of one micro-batch.

    Read by: train, check, plan, tune-batch, data stats, data bench.
    """

    audio_seconds: PositiveFloat
    """Cost that a micro-batch may hold, in seconds of audio; the micro-batch has to fit one GPU."""
    per_example: float = Field(default=1.0, ge=0)
    """Seconds that each example costs beside its audio, for its text."""
    tokens: PositiveInt | None = None
    """Decoder tokens that a micro-batch may hold, audio tokens included. Default: not bounded. Read by:
    train.
    """


class L2spConfig(Strict):
    """L2-SP (Li et al. 2018): a penalty on the squared distance of the weights from where the stage began.

    Read by: train, check.
    """

    weight: PositiveFloat
    """Factor: the loss grows by `weight / 2` times the squared distance. Read by: train."""
    on: Expression = r"^encoder\."
    """Regular expression, searched for in the parameters' names: which of them are penalized. Default: the
    encoder's.
    """


class EwcConfig(Strict):
    """Elastic weight consolidation (Kirkpatrick et al. 2017): as `l2sp`, with each parameter weighed by its
    Fisher information on old data.

    Read by: train, check.
    """

    weight: PositiveFloat
    """Factor of the penalty, halved as in `l2sp`. Read by: train."""
    recipe: str | None = None
    """Recipe of the old data. Default: that of the stage before; the first stage must name one."""
    examples: PositiveInt = 200
    """Examples from which the Fisher information is estimated."""
    on: Expression = r"^encoder\."
    """Regular expression, searched for in the parameters' names: which of them are penalized. Default: the
    encoder's.
    """


class DistillConfig(Strict):
    """Feature distillation: a penalty on the distance between the encoder's frames and those it gave when the
    stage began.

    Read by: train.
    """

    weight: PositiveFloat
    """Factor of the mean distance."""
    distance: Literal["mse", "cosine"] = "mse"
    """Distance of two frames: `mse`, the squared one summed over their width, or `cosine`, 1 minus their
    cosine.
    """


class EmaConfig(Strict):
    """An exponential moving average of the trained weights, kept beside them; `RUN:ema` loads it.

    Read by: train.
    """

    decay: float = Field(default=0.999, gt=0, lt=1)
    """Decay per optimizer step."""


class ContinualConfig(Strict):
    """Continual-learning methods of a stage, all off by default; they may be combined. Replay is set in the
    recipe.

    Read by: train, check.
    """

    l2sp: L2spConfig | None = None
    """L2-SP penalty. Default: off."""
    ewc: EwcConfig | None = None
    """Elastic weight consolidation. Default: off."""
    distill: DistillConfig | None = None
    """Feature distillation. Default: off."""
    ema: EmaConfig | None = None
    """Moving average of the weights. Default: off."""


class BalanceConfig(Strict):
    """Adaptive sampling: datasets whose tasks still improve their validation loss are drawn more often.

    Read by: train, check.
    """

    every: PositiveInt
    """Optimizer steps between two changes of the mixture."""
    bound: float = Field(default=4.0, gt=1)
    """A dataset's share stays within `1 / bound` and `bound` times its share in the recipe."""
    rate: PositiveFloat = 0.5
    """Largest change of the logarithm of that factor at a time."""
    examples: PositiveInt = 64
    """Largest number of rows of each evaluation set on which the loss is measured."""


class Stage(Strict):
    """A stage of training: a recipe, a duration, what is trained and how. Every stage has an optimizer and a
    schedule of its own; the checkpoint at its end is kept.

    Read by: train, check, plan.
    """

    name: str
    """Name of the stage in logs, checkpoints and `metrics.jsonl`; unique in the run."""
    recipe: str
    """Recipe by name or path. Read by: recipe commands, eval, forgetting, report."""
    steps: PositiveInt | None = None
    """Optimizer steps. Either `steps` or `hours` is required."""
    hours: PositiveFloat | None = None
    """Hours of audio after which the stage ends, in place of `steps`."""
    warmup: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises linearly from 0. Read by: train."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after warm-up: `cosine` and `linear` decay to `final_lr_share`, `constant` stays.
    Read by: train.
    """
    final_lr_share: float = Field(default=0.0, ge=0, le=1)
    """Learning rate at the end of the decay as a share of the peak. Read by: train."""
    budget: Budget
    """The size of one micro-batch."""
    train: dict[str, Mode] = Field(default={})
    """Regular expressions, searched for in the parameters' names, mapped to `full`, `lora` or `frozen`; the last match
    applies. Default: as set by encoders and decoder. Read by: run commands.
    """
    lr: dict[str, PositiveFloat] = Field(default={})
    """Regular expressions mapped to peak learning rates, as for `train`. Default: those of the components. Read by:
    train, check.
    """
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Layer-wise learning-rate decay: the factor for each layer below the encoder's last. 1 is off. Read by:
    train.
    """
    merge_lora: bool = False
    """Add the low-rank updates of earlier stages to the encoder's weights when the stage begins. Read by: run
    commands.
    """
    continual: ContinualConfig = ContinualConfig()
    """Continual-learning methods."""
    balance: BalanceConfig | None = None
    """Adaptive sampling. Default: off; the recipe's mixture does not change."""

    @field_validator("train", "lr")
    @classmethod
    def check_expressions(cls, patterns: dict[str, object]) -> dict[str, object]:
        for pattern in patterns:
            check_expression(pattern)
        return patterns

    @model_validator(mode="after")
    def check_length(self) -> Stage:
        if self.steps is None and self.hours is None:
            raise ValueError(f"stage {self.name} needs either `steps` or `hours` (of audio)")
        if self.steps is not None and self.hours is not None:
            raise ValueError(
                f"stage {self.name} has both `steps` and `hours` (of audio); leave out one of them"
            )
        if self.steps is not None and self.warmup > self.steps:
            raise ValueError(f"warmup {self.warmup} is longer than the stage's {self.steps} steps")
        return self


class GuardConfig(Strict):
    """A regression check during training (early stopping): datasets that are probed regularly and compared with
    the start of the run.

    Read by: train.
    """

    sets: dict[str, str] = Field(min_length=1)
    """Names to labelled folders, each with a manifest (.jsonl, .csv or .tsv). Read by: train, forgetting."""
    every: PositiveInt
    """Optimizer steps between two checks; the end of each stage is checked, too."""
    probe: Literal["knn", "linear", "mlp"] = "knn"
    """Probe that is trained on the encoder's embeddings."""
    max_drop: float = Field(default=1.0, ge=0)
    """Accuracy that may be lost, in percentage points."""
    action: Literal["alarm", "stop"] = "alarm"
    """`alarm` logs a warning, `stop` saves a checkpoint and ends the run (early stopping)."""
