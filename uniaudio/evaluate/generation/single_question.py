"""Answer one question about one clip with a loaded model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.audio import decode
from uniaudio.data.chat_format import ChatFormat
from uniaudio.data.collate import collate_prompts
from uniaudio.data.template import AUDIO
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.embedding import MAX_CLIP_SECONDS
from uniaudio.evaluate.generation.batch_answers import generate
from uniaudio.model.audio_lm import AudioLM
from uniaudio.types import Example


def read_clip(path: Path) -> NDArray[np.int16]:
    """Decode one file for a question.

    Raises:
        UserError: when it cannot be used.
    """
    try:
        return decode(path, MAX_CLIP_SECONDS, str(path))
    except RowError as problem:
        raise UserError(str(problem)) from problem


def answer_question(model: AudioLM, format: ChatFormat, clip: Path, text: str, max_new_tokens: int) -> str:
    """Answer a question about an audio file; an answer that is cut says so."""
    pieces = split_question(text)
    return answer_samples(model, format, read_clip(clip), pieces, max_new_tokens)


def split_question(text: str) -> tuple[str, ...]:
    """Return a question cut at the place of its one clip, which is before the text where none is marked.

    Raises:
        UserError: when several places are marked.
    """
    pieces = tuple((text if AUDIO in text else f"{AUDIO}{text}").split(AUDIO))
    if len(pieces) != 2:
        raise UserError(f"the question holds {len(pieces) - 1} {AUDIO} marks for one clip")
    return pieces


def answer_samples(
    model: AudioLM,
    format: ChatFormat,
    samples: NDArray[np.int16],
    pieces: tuple[str, ...],
    max_new_tokens: int,
) -> str:
    """Answer a question, cut at the place of its clip, about int16 samples ``[S]`` at 16 kHz.

    An answer that has not ended after ``max_new_tokens`` says so behind its text.

    Raises:
        UserError: when the question holds the text of a special token, or has more tokens than allowed with its clip.
    """
    example = Example("question", "ask", "ask", (samples,), pieces, "-")
    try:
        format.check_question(pieces, example.answer, model.count_slots(len(samples)))
        batch = collate_prompts([example], format, model.count_slots, ("ask",))
    except RowError as problem:
        raise UserError(f"the question cannot be used: {problem}") from problem
    device = next(model.parameters()).device
    answer = generate(model, batch.to(device), format, max_new_tokens)[0]
    return f"{answer.text} … (cut after {max_new_tokens} tokens)" if answer.is_cut else answer.text
