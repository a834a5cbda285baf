"""When the memory does not suffice: what the batch was, and which setting to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from uniaudio.config.stages import Stage
from uniaudio.errors import UserError
from uniaudio.types import Batch

SIGNS = ("out of memory", "can't allocate memory")  # of CUDA, of the CPU's allocator


@contextlib.contextmanager
def explain_out_of_memory(batch: Batch | None, stage: Stage, step: int) -> Iterator[None]:
    """Turn an allocation that failed into a sentence about the micro-batch; None: about the optimizer's update.

    Raises:
        UserError: with the sizes of the micro-batch.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as problem:
        text = str(problem)
        if not isinstance(problem, MemoryError | torch.OutOfMemoryError) and not any(
            s in text for s in SIGNS
        ):
            raise
        if batch is None:
            raise UserError(
                f"out of memory in step {step}, at the update of the weights: AdamW keeps two moments of each "
                f"trained parameter; train less (stages.{stage.name}.train, or lora), or launch with zero2 or fsdp2 on "
                "more GPUs"
            ) from problem
        raise UserError(
            f"out of memory in step {step}, at a micro-batch of {len(batch.audio)} clips, "
            f"{batch.audio_seconds:.0f} s of audio, {len(batch.tokens.values)} decoder tokens and "
            f"{batch.answer_tokens} answer tokens; lower stages.{stage.name}.budget.audio_seconds "
            f"(now {stage.budget.audio_seconds:g}), or let `uniaudio tune-batch` search for it"
        ) from problem
