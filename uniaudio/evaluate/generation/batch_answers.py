"""Greedy answers of a batch, equal to those of every prompt alone."""

from __future__ import annotations

from typing import NamedTuple

import torch

from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.model.audio_lm import AudioLM, ReadPrompts
from uniaudio.types import Batch


class Generated(NamedTuple):
    """What a model said; ``is_cut``: it had not come to its end of turn when it was as long as allowed."""

    text: str
    is_cut: bool


@torch.no_grad()
def generate(
    model: AudioLM,
    prompts: Batch,
    format: ChatFormat,
    max_new_tokens: int,
    read: ReadPrompts | None = None,
    repetition_penalty: float = 1.0,
) -> list[Generated]:
    """Answer the prompts of a batch (from ``collate_prompts``) greedily; each row stops at its end of turn.

    Args:
        read: of the same prompts, by ``AudioLM.read_prompts``, where they were read before.
    """
    was_training = model.training
    model.eval()
    rows = model.generate_ids(
        prompts, max_new_tokens, format.end_of_turn, format.pad, read, repetition_penalty
    )
    model.train(was_training)
    return [Generated(format.answer_text(row), format.end_of_turn not in row) for row in rows]
