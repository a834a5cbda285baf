"""The units of a text that error rates and n-grams count, also in scripts without blanks between words."""

from __future__ import annotations

import re

from uniaudio.errors import UserError, read_first_line

# Scripts that put no blanks between words, by their Unicode blocks. Hangul and Ethiopic separate words.
UNSPACED = (
    "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9d"  # kana
    "\u3105-\u312f\u31a0-\u31bf"  # Bopomofo
    "\u0e01-\u0e3a\u0e40-\u0e5b"  # Thai
    "\u0e81-\u0edf"  # Lao
    "\u1780-\u17dd"  # Khmer
    "\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9fe"  # Myanmar
    "\u0f40-\u0fbc"  # Tibetan
)
# combining signs of these scripts, which belong to the character before them
SIGNS = (
    "\u0300-\u036f\u3099\u309a\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece"
    "\u17b4-\u17d3\u17dd\u102b-\u103e\u1056-\u1059\u105e-\u1060\u1062-\u1064\u1067-\u106d\u1071-\u1074"
    "\u1082-\u108d\u108f\u109a-\u109d\u0f71-\u0f84\u0f8d-\u0fbc\u302a-\u302f"
)
UNIT = re.compile(f"[{UNSPACED}][{SIGNS}]*")
BLANK_BESIDE = re.compile(f"(?<=[{UNSPACED}{SIGNS}]) (?=[{UNSPACED}])")

# how `scoring.tokenize` names a language whose texts have a tokenizer of their own in sacrebleu
BLEU_TOKENIZERS = {
    "zh": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
    "th": "char",
    "lo": "char",
    "km": "char",
    "my": "char",
}


def separate_units(text: str, tokenize: str) -> str:
    """Return a text with one blank between the units that are counted as words.

    Args:
        tokenize: ``words``: blanks separate them. ``characters``: every character but blanks is one. ``auto`` or a
            language: the characters of scripts without blanks between words are units of their own, with their
            combining signs; everything else is separated by blanks, so for other scripts that is ``words``.
    """
    if tokenize == "words":
        return text
    if tokenize == "characters":
        return " ".join(text.replace(" ", ""))
    return " ".join(UNIT.sub(lambda unit: f" {unit[0]} ", text).split())


def drop_meaningless_blanks(text: str, tokenize: str) -> str:
    """Return a text without the blanks that stand in a script without blanks, for counting characters."""
    return text if tokenize == "words" else BLANK_BESIDE.sub("", text)


def choose_bleu_tokenizer(tokenize: str) -> str:
    """Return the name of sacrebleu's tokenizer for texts that ``separate_units`` has gone over.

    Raises:
        UserError: when the tokenizer of a language needs a package that is not installed.
    """
    from sacrebleu.metrics.bleu import BLEU

    name = BLEU_TOKENIZERS.get(tokenize, "13a")
    try:
        BLEU(tokenize=name)
    except RuntimeError as problem:
        raise UserError(
            f"scoring.tokenize: {tokenize}: sacrebleu's {name} is not installed ({read_first_line(problem)}); "
            f"pip install 'sacrebleu[{tokenize}]', or set tokenize: auto to count characters"
        ) from problem
    return name
