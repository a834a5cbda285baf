"""Processes that ask a model together: every one holds it whole."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
from accelerate import PartialState

from uniaudio.build.encoders import choose_device
from uniaudio.distributed import explain_lost_processes

PATIENCE = timedelta(hours=2)  # a process that is done waits for the slowest
SPREADING = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
)  # what a launch file may ask for, for training


@contextlib.contextmanager
def join_processes() -> Iterator[torch.device]:
    """Join the processes that ``accelerate launch`` started, if any, and give this one's device.

    Weights are not spread, whatever the launch file says: nothing is trained.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield choose_device()
        return
    for variable in SPREADING:
        os.environ.pop(variable, None)
    cuda = torch.cuda.is_available()
    state = PartialState(cpu=not cuda, backend="nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        with explain_lost_processes():
            yield state.device
    finally:
        state.destroy_process_group()
