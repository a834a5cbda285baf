"""The command `ask`: one question about one audio file."""

from __future__ import annotations

from pathlib import Path

from uniaudio.build.model import load_model
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.evaluate.generation.single_question import answer_question, read_clip


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
