"""The answers to the windows of a long clip become one answer of its row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from uniaudio.data.long_clips import WINDOW_MARK
from uniaudio.data.template_file import JOINED_METRICS, Scoring
from uniaudio.evaluate.generation.predictions import Prediction
from uniaudio.evaluate.metrics.classification import compute_probabilities
from uniaudio.evaluate.metrics.normalization import normalize_text


def join_windows(
    answered: Sequence[Prediction], scoring: Scoring, label_tokens: Sequence[int]
) -> list[Prediction]:
    """Return one answer for each row: answers to the windows of a long clip become one.

    Texts that are compared with a text (``JOINED_METRICS``) are joined in order. Of lists of tags every tag is kept
    once, at its first place. Else the answer given most often counts, after normalising; of equally many the first.
    The probabilities of labels are averaged.

    Args:
        answered: in the order of rows and windows. label_tokens: of every label of a closed set.
    """
    joined = []
    for _, items in groupby(answered, key=lambda item: item.place):
        windows = tuple(items)
        first = windows[0]
        if first.window is None:
            joined.append(first)
            continue
        scores = [item.log_likelihoods for item in windows if item.log_likelihoods is not None]
        joined.append(
            replace(
                first,
                id=first.id.rpartition(WINDOW_MARK)[0],
                answer=join_texts([item.answer for item in windows], scoring),
                log_likelihoods=average_likelihoods(scores, label_tokens, scoring) if scores else None,
                is_cut=any(item.is_cut for item in windows),
                window=None,
                windows=windows,
            )
        )
    return joined


def join_texts(texts: Sequence[str], scoring: Scoring) -> str:
    """Return the one answer that the answers to windows make, see ``join_windows``."""
    if scoring.metric in JOINED_METRICS:
        return " ".join(text.strip() for text in texts if text.strip())
    if scoring.metric == "map":
        tags = [tag.strip() for text in texts for tag in text.split(scoring.separator) if tag.strip()]
        distinct = {normalize_text(tag, scoring.normalize): tag for tag in reversed(tags)}
        kept = set(distinct.values())
        return scoring.separator.join(dict.fromkeys(tag for tag in tags if tag in kept))
    plain = [normalize_text(text, scoring.normalize) for text in texts]
    votes = Counter(plain)
    return texts[plain.index(max(plain, key=lambda text: votes[text]))]


def average_likelihoods(
    scores: Sequence[tuple[float, ...]], label_tokens: Sequence[int], scoring: Scoring
) -> tuple[float, ...]:
    """Return log-likelihoods whose probabilities are the means of those of the windows."""
    chances = compute_probabilities(np.array(scores, np.float64), label_tokens, scoring.likelihood).mean(0)
    logs = np.log(np.maximum(chances, np.finfo(np.float64).tiny))
    return tuple(float(x) for x in (logs * label_tokens if scoring.likelihood == "mean" else logs))
