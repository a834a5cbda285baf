"""Where a run is, and how it gets back there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uniaudio.errors import UserError
from uniaudio.train.checkpoint import check_bases, latest_checkpoint, load_checkpoint


@dataclass
class Position:
    """Optimizer steps done, in all and in the current stage; the stream's state and the rows left out so far."""

    step: int = 0
    stage: int = 0
    stage_step: int = 0
    stream: dict[str, Any] | None = None
    skips: dict[str, Any] | None = None


def restore(
    run_dir: Path, model: nn.Module, optimizer: torch.optim.Optimizer, bases: Mapping[str, Mapping[str, str]]
) -> Position:
    """Load the newest whole checkpoint into model and optimizer and return the position behind it.

    Rates, decay and betas stay those of the optimizer: they are the config's to say, also when it was changed since.

    Raises:
        UserError: when there is no checkpoint, or it belongs to another model.
    """
    path = latest_checkpoint(run_dir)
    if path is None:
        raise UserError(f"--resume: {run_dir} holds no whole checkpoint; leave --resume out to start")
    checkpoint = load_checkpoint(path)
    check_bases(checkpoint, bases)
    model.load_trainable_state(checkpoint.model)  # type: ignore[operator]
    settings = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": checkpoint.optimizer["state"], "param_groups": settings})
    state = checkpoint.state
    return Position(state["step"], state["stage"], state["stage_step"], state["stream"], state["skips"])
