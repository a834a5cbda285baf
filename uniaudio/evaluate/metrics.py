"""Scores of generated answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jiwer

from uniaudio.data.template import Scoring


def normalized(text: str, how: str) -> str:
    """Even out what does not count: case ("lowercase"), or case and punctuation ("words")."""
    text = " ".join(text.split())
    if how == "none":
        return text
    text = text.lower()
    return " ".join(re.sub(r"[^\w\s']", " ", text).split()) if how == "words" else text


def is_right(answer: str, references: Sequence[str], scoring: Scoring) -> bool:
    """Return whether an answer equals one of the right ones after normalising."""
    return normalized(answer, scoring.normalize) in {normalized(r, scoring.normalize) for r in references}


def score(answers: Sequence[str], references: Sequence[Sequence[str]], scoring: Scoring) -> float:
    """Return the metric over a set: a share of right answers, or an error rate (lower is better) for wer and cer."""
    if scoring.metric in ("wer", "cer"):
        rate = jiwer.wer if scoring.metric == "wer" else jiwer.cer
        truth = [normalized(r[0], scoring.normalize) for r in references]
        return float(rate(truth, [normalized(a, scoring.normalize) for a in answers]))
    right = [is_right(a, r, scoring) for a, r in zip(answers, references, strict=True)]
    return sum(right) / len(right)
