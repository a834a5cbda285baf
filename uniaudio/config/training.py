"""Optimizer, global batch, checkpoints, logging and trackers in a run config."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from uniaudio.config.records import Strict

TrackerName = Literal[
    "tensorboard", "wandb", "trackio", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab"
]

Beta = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(Strict):
    """The optimizer (AdamW), the global batch, checkpoints and logging.

    Read by: train.
    """

    max_steps: PositiveInt | None = None
    """Largest number of optimizer steps of the whole run, over all stages. Default: those of the stages."""
    micro_batches: PositiveInt | None = None
    """Micro-batches of one optimizer step over all processes; divided by the number of processes, this is the gradient
    accumulation of each. Default: the number of processes. Read by: train, check, plan, data stats.
    """
    clip: PositiveFloat = 1.0
    """Gradient clipping: largest norm of the gradient."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW, for matrices; biases and norms are not decayed."""
    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """Coefficients of AdamW's running means of the gradient and of its square."""
    precision: Literal["auto", "bf16", "no"] = "auto"
    """`bf16` runs the forward under autocast, `no` in float32; `auto` is bf16 on GPUs and `no` on CPUs. Weights and
    moments are float32. Read by: train, plan, tune-batch.
    """
    log_every: PositiveInt = 10
    """Optimizer steps between two lines of metrics; a checkpoint ends a line, too."""
    save_every: PositiveInt = 500
    """Optimizer steps between two checkpoints."""
    keep_last: PositiveInt = 2
    """Number of newest checkpoints to keep; those at the ends of stages are always kept."""
    keep_every: PositiveInt | None = None
    """Keep the checkpoints at multiples of this number of steps, too. Default: none."""
    max_loss_ratio: float = Field(default=10.0, gt=1)
    """Loss spikes: a step whose loss is more than this factor times the moving average of the stage's losses (about
    its last 20 steps; 1 if that is more) is skipped.
    """
    max_bad_steps: PositiveInt = 5
    """Skipped steps in a row (loss spikes, gradients that are not finite) after which the run ends with an
    error.
    """
    memory_gib: PositiveFloat | None = None
    """Memory that a process may use, in GiB, for `recompute: auto`. Default: that of its GPU; unlimited on a CPU. Read
    by: train, plan.
    """
    compile: bool = False
    """Compile the layers of packed encoders and decoders with `torch.compile`."""
    hang_seconds: PositiveFloat = 1800
    """Seconds without a step after which every process writes the stacks of its threads to the run folder."""
    profile: bool = False
    """Profile three steps with PyTorch's profiler, print the time by part and write a trace."""
    callbacks: tuple[str, ...] = ()
    """Your own classes, each `module:Class` with methods such as `on_log` that training calls (docs/python.md);
    imported only with the option `--allow-code`.
    """
    evaluate_every: PositiveInt | None = None
    """Optimizer steps between two evaluations, in every stage on the evaluation sets of the last stage's recipe.
    Default: no evaluation in training. Read by: train, check.
    """
    tensorboard: bool = True
    """Also write TensorBoard event files, if the extra `tensorboard` is installed."""
    trackers: tuple[TrackerName, ...] = ()
    """Experiment trackers in addition to `metrics.jsonl`; each needs its package, for `wandb`, `trackio` and `mlflow`
    the extra of that name.
    """
    project: str = "uniaudio"
    """Project of the trackers (experiment in MLflow)."""
    run_name: str | None = None
    """Name of the run in the trackers. Default: that of the run folder."""
    tags: tuple[str, ...] = ()
    """Tags of the run in the trackers."""
    label_chunk: PositiveInt = 2048
    """Answer tokens whose logits are in memory at a time. Read by: train, plan."""

    @field_validator("callbacks")
    @classmethod
    def check_callbacks(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if not re.fullmatch(r"[\w.]+:\w+", name):
                raise ValueError(f"callbacks: '{name}' is not written as module:Class")
        return names
