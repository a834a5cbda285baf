"""The scores of generated answers that a template's ``scoring`` asks for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from uniaudio.data.template import Scoring
from uniaudio.evaluate.metrics.intervals import Summed, make_mean
from uniaudio.evaluate.metrics.normalization import normalize_text
from uniaudio.evaluate.metrics.text_metrics import TEXT_METRICS, References, tag_precision

# what is told beside the metric that was asked for
COMPANIONS = {
    "wer": ("wer", "cer"),
    "meteor": ("meteor", "bleu"),
    "cider": ("cider", "meteor", "bleu"),
    "map": ("map", "accuracy"),
}


def is_right(answer: str, references: Sequence[str], scoring: Scoring) -> bool:
    """Return whether an answer equals one of the right ones after normalising."""
    return normalize_text(answer, scoring.normalize) in {
        normalize_text(r, scoring.normalize) for r in references
    }


def measure_metric(answers: Sequence[str], references: References, scoring: Scoring, metric: str) -> Summed:
    """Return one metric of a set of answers.

    Args:
        references: all right answers of every clip, at least one each.

    Raises:
        UserError: when the metric needs an extra that is not installed.
    """
    if metric == "accuracy":
        right = [is_right(a, r, scoring) for a, r in zip(answers, references, strict=True)]
        return make_mean(np.array(right, np.float64))
    if metric == "map":
        lists = [[normalize_tags(text, scoring) for text in group] for group in references]
        return tag_precision([normalize_tags(a, scoring) for a in answers], lists, scoring.separator)
    truths = [[normalize_text(r, scoring.normalize) for r in texts] for texts in references]
    return TEXT_METRICS[metric](
        [normalize_text(a, scoring.normalize) for a in answers], truths, tokenize=scoring.tokenize
    )


def normalize_tags(text: str, scoring: Scoring) -> str:
    """Normalise every tag of a list; the marks between them stay."""
    tags = text.split(scoring.separator)
    return scoring.separator.join(normalize_text(tag, scoring.normalize) for tag in tags)


def measure_with_companions(
    answers: Sequence[str], references: References, scoring: Scoring
) -> dict[str, Summed]:
    """Return the metric of a template and its companions, by name, the metric itself first."""
    names = COMPANIONS.get(scoring.metric, (scoring.metric,))
    return {name: measure_metric(answers, references, scoring, name) for name in names}
