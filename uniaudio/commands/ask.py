"""The command `ask`: questions about clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from uniaudio.build.model import LoadedModel, load_model
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.data.clips_from_python import AudioInput
from uniaudio.errors import UserError
from uniaudio.evaluate.generation.generated_answers import (
    answer_all,
    answer_question,
    read_clip,
    split_question,
)


def answer_file_question(
    spec: str, clip: Path, text: str, max_new_tokens: int, trust: Trust = NO_TRUST
) -> str:
    """Load a model and answer one question about one clip; an answer without text is "(empty answer)".

    Raises:
        UserError: when the clip cannot be used, before the model is loaded, or the model cannot be loaded.
    """
    read_clip(clip)
    loaded = load_model(spec, trust=trust)
    return answer_question(loaded.model, loaded.format, clip, text, max_new_tokens) or "(empty answer)"


def answer_questions(
    loaded: LoadedModel,
    clips: Sequence[AudioInput],
    texts: str | Sequence[str],
    sampling_rate: int,
    max_new_tokens: int,
    batch_seconds: float,
) -> list[str]:
    """Answer one question about every clip.

    Args:
        texts: one question for all clips, or as many as there are clips.

    Raises:
        UserError: when a clip or a question cannot be used, before any is answered.
    """
    questions = [texts] * len(clips) if isinstance(texts, str) else texts
    if not isinstance(questions, Sequence) or not all(isinstance(text, str) for text in questions):
        raise UserError(f"text: give one question, or a list with one for each clip, not {texts!r}")
    if len(questions) != len(clips):
        raise UserError(
            f"text: {len(questions)} questions for {len(clips)} clips; give one, or one for each clip"
        )
    pieces = [split_question(text) for text in questions]
    samples = [read_clip(clip, sampling_rate, f"audio[{i}]") for i, clip in enumerate(clips)]
    return answer_all(loaded.model, loaded.format, samples, pieces, max_new_tokens, batch_seconds)
