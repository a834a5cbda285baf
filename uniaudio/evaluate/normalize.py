"""Texts without what does not count, before answers are compared."""

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache
from typing import Any

CHALLENGE_MARKS = str.maketrans("", "", string.punctuation)


def normalized(text: str, how: str) -> str:
    """Even out what does not count; white space is always one blank, and none at the ends.

    Args:
        how: ``none``; ``lowercase``: case; ``words``: case and punctuation but apostrophes; ``whisper``: Whisper's
            basic normaliser (Radford et al. 2022, appendix C), for any language; ``whisper_english``: its English one,
            with numbers and contractions, but without the table of British spellings, which only checkpoints carry.
    """
    text = " ".join(text.split())
    if how == "none":
        return text
    if how in ("whisper", "whisper_english"):
        return " ".join(whisper_normalizer(how)(text).split())
    text = text.lower()
    return " ".join(re.sub(r"[^\w\s']", " ", text).split()) if how == "words" else text


@cache
def whisper_normalizer(how: str) -> Any:
    """Return transformers' own normaliser; its import takes a moment and not every set wants it."""
    from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

    return EnglishTextNormalizer({}) if how == "whisper_english" else BasicTextNormalizer()


def challenge_text(text: str) -> str:
    """Return a text as XARES-LLM compares it: NFKC, lower case, hyphens as blanks, no ASCII punctuation."""
    text = unicodedata.normalize("NFKC", text).lower().replace("-", " ")
    return " ".join(text.translate(CHALLENGE_MARKS).split())
