"""The dtype of autocast, and launch files that say otherwise; quick to import, for every launch waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uniaudio.config.run import RunConfig
from uniaudio.errors import UserError

if TYPE_CHECKING:
    import torch


def choose_precision(config: RunConfig) -> torch.dtype | None:
    """Return the dtype of autocast, or None for float32: bf16 on CUDA unless the config says otherwise."""
    import torch

    wanted = config.train.precision
    if wanted == "auto":
        wanted = "bf16" if torch.cuda.is_available() else "no"
    return torch.bfloat16 if wanted == "bf16" else None


def refuse_other_precision(launched: str, config: RunConfig) -> None:
    """Refuse a ``mixed_precision`` of the launch file that is not the precision of the run.

    Raises:
        UserError: naming both values.
    """
    wanted = config.train.precision
    of_run = "no" if choose_precision(config) is None else "bf16"
    if launched != of_run:
        shown = wanted if wanted != "auto" else f"auto, which is {of_run} here"
        raise UserError(
            f"the accelerate file says mixed_precision {launched}, but train.precision is {shown}; "
            "leave the precision to the run config"
        )
