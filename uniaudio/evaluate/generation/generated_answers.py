"""Greedy answers of a batch, equal to those of every prompt alone, and to single questions about clips."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from uniaudio.data.audio import quantize_samples
from uniaudio.data.clips_from_python import AudioInput, read_samples
from uniaudio.data.collate import collate_prompts
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.template import AUDIO
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.embedding import MAX_CLIP_SECONDS, batch_by_length
from uniaudio.model.audio_lm import AudioLM, ReadPrompts
from uniaudio.types import SAMPLE_RATE, Batch, Example


class Generated(NamedTuple):
    """What a model said.

    Args:
        is_cut: it had not come to its end of turn when it was as long as allowed, or the decoder had no more positions.
        tokens: how many it has; with the end of turn and what follows it, where it is not cut.
    """

    text: str
    is_cut: bool
    tokens: int


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
    return [Generated(format.answer_text(row), format.end_of_turn not in row, len(row)) for row in rows]


def read_clip(clip: AudioInput, rate: int = SAMPLE_RATE, name: str = "audio") -> NDArray[np.int16]:
    """Read one clip for a question, see ``read_samples``.

    Raises:
        UserError: when it cannot be used.
    """
    return quantize_samples(read_samples(clip, rate, MAX_CLIP_SECONDS, name))


def answer_question(
    model: AudioLM, format: ChatFormat, clip: AudioInput, text: str, max_new_tokens: int
) -> str:
    """Answer a question about a clip; an answer that is cut says so."""
    return answer_all(model, format, [read_clip(clip)], [split_question(text)], max_new_tokens)[0]


def split_question(text: str) -> tuple[str, ...]:
    """Return a question cut at the place of its one clip, which is before the text where none is marked.

    Raises:
        UserError: when several places are marked.
    """
    pieces = tuple((text if AUDIO in text else f"{AUDIO}{text}").split(AUDIO))
    if len(pieces) != 2:
        raise UserError(f"the question contains {len(pieces) - 1} {AUDIO} marks for one clip")
    return pieces


def answer_all(
    model: AudioLM,
    format: ChatFormat,
    clips: Sequence[NDArray[np.int16]],
    questions: Sequence[tuple[str, ...]],
    max_new_tokens: int,
    batch_seconds: float = 60.0,
) -> list[str]:
    """Answer questions, each cut at the place of its clip, about int16 samples ``[S]`` at 16 kHz.

    An answer that has not ended after ``max_new_tokens``, or where the decoder's positions do, says so behind its text.

    Args:
        clips, questions: as many of each. batch_seconds: audio of the clips that are answered together.

    Raises:
        UserError: before any is answered, when a question holds the text of a special token, or has more tokens than
            allowed with its clip.
    """
    examples = [
        Example("question", "ask", "ask", (samples,), pieces, "-")
        for samples, pieces in zip(clips, questions, strict=True)
    ]
    device = next(model.parameters()).device
    answers: dict[int, str] = {}
    try:
        for example in examples:
            format.check_question(example.prompt, example.answer, model.count_slots(len(example.clips[0])))
        for batch in batch_by_length([len(clip) for clip in clips], batch_seconds * SAMPLE_RATE):
            prompts = collate_prompts([examples[i] for i in batch], format, model.count_slots, ("ask",))
            for i, answer in zip(
                batch, generate(model, prompts.to(device), format, max_new_tokens), strict=True
            ):
                cut = f" … (cut after {answer.tokens} tokens)" if answer.is_cut else ""
                answers[i] = answer.text + cut
    except RowError as problem:
        raise UserError(f"the question cannot be used: {problem}") from problem
    return [answers[i] for i in range(len(examples))]
