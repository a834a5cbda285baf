"""Texts without what does not count, before answers are compared."""

from __future__ import annotations

import re
import string
import unicodedata
from functools import cache
from typing import Any

from uniaudio.config.text_files import compose

CHALLENGE_MARKS = str.maketrans("", "", string.punctuation)
# typographic signs that keyboards and transcripts write as the plain ones
PLAIN_QUOTES = str.maketrans("‘’‛ʼ´｀`＇“”„‟«»＂", "''''''''" + '"' * 7)
BRACKETED = (re.compile(r"[<\[][^>\]]*[>\]]"), re.compile(r"\([^)]+?\)"))


class KeepWords(dict[int, str]):
    """A table for ``str.translate`` that is filled as characters occur: what is no part of a word becomes a blank.

    Letters, digits and combining marks are parts of words; so are the characters of ``more``. Invisible characters that
    only shape the text (joiners, soft hyphens, directions: category Cf) are dropped.
    """

    def __init__(self, more: str) -> None:
        super().__init__()
        self.more = more

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        kept = category[0] in "LMN" or character in self.more
        self[code] = character if kept else "" if category == "Cf" else " "
        return self[code]


WORDS = KeepWords("_'")
WHISPER_WORDS = KeepWords("")


def normalize_text(text: str, how: str) -> str:
    """Even out what does not count; white space is always one blank, none at the ends, and accents are composed (NFC).

    Args:
        how: ``none``; ``lowercase``: case, and typographic apostrophes and quotation marks are plain ones; ``words``:
            that, and punctuation and symbols but apostrophes; ``whisper``: Whisper's basic normaliser (Radford et
            al. 2022, appendix C), for any language, but with combining marks kept, which are vowels in the scripts of
            India and South-East Asia; ``whisper_english``: its English one, with numbers and contractions, but
            without the table of British spellings, which only checkpoints carry.
    """
    text = " ".join(compose(text).split())
    if how == "none":
        return text
    text = text.translate(PLAIN_QUOTES)
    if how == "whisper_english":
        return " ".join(load_whisper_normalizer()(text).split())
    text = text.lower()
    if how == "words":
        return join_words(text, WORDS)
    if how == "whisper":
        for brackets in BRACKETED:
            text = brackets.sub("", text)
        return join_words(unicodedata.normalize("NFKC", text).lower(), WHISPER_WORDS)
    return text


def join_words(text: str, table: KeepWords) -> str:
    """Return the words of a text with one blank each; a combining mark without its letter is none."""
    words = text.translate(table).split()
    return " ".join(word for word in words if not all(unicodedata.category(c)[0] == "M" for c in word))


@cache
def load_whisper_normalizer() -> Any:
    """Return transformers' own normaliser; its import takes a moment and not every set wants it."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    return EnglishTextNormalizer({})


def normalize_challenge_text(text: str) -> str:
    """Return a text as XARES-LLM compares it: NFKC, lower case, hyphens as blanks, no ASCII punctuation."""
    text = unicodedata.normalize("NFKC", text).lower().replace("-", " ")
    return " ".join(text.translate(CHALLENGE_MARKS).split())
