"""The scores of a probe that names one class for each clip: accuracy, UAR and macro-F1, over folds and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from uniaudio.evaluate.metrics.class_averages import CLASS_METRICS, measure_class_averages
from uniaudio.evaluate.metrics.intervals import Array

RESAMPLES = 200  # bootstrap draws of the test set, for the spread of the probe that has no seed
ProbeScores = dict[
    str, dict[str, Any]
]  # probe -> mean and std of the task's metric, and ``metrics``: those of each


def score_classes(guesses: Tensor, truth: Tensor, classes: int) -> dict[str, Tensor]:
    """Return accuracy, UAR and macro-F1 of the guesses of S probes, ``[S]`` float64 each.

    Args:
        guesses: class indices ``[S, N]``. truth: ``[N]``.
    """
    scores = {"accuracy": (guesses == truth).double().mean(1)}
    averages = [measure_class_averages(truth.numpy(), row.numpy(), classes) for row in guesses]
    for name in CLASS_METRICS:
        scores[name] = torch.tensor([each[name].score() for each in averages], dtype=torch.float64)
    return scores


def summarize_scores(spreads: Mapping[str, Mapping[str, float]], metric: str | None) -> dict[str, Any]:
    """Return what is kept of a probe: mean and std of the task's metric, and of all metrics where there are several.

    Args:
        spreads: mean and std by metric. metric: None for the first.
    """
    main = spreads[metric or next(iter(spreads))]
    every = {"metrics": {name: dict(spread) for name, spread in spreads.items()}} if len(spreads) > 1 else {}
    return {**main, **every}


def score_knn(
    guesses: Sequence[Tensor], truths: Sequence[Tensor], classes: int, metric: str | None = None
) -> dict[str, Any]:
    """Return the scores of kNN, the mean over folds; kNN has no seed, so ``std`` is that of the mean over 200 bootstrap
    draws of the test clips.

    Args:
        guesses, truths: of each fold, class indices ``[N]``. metric: of the task; None for accuracy.
    """
    means: dict[str, list[float]] = {name: [] for name in ("accuracy", *CLASS_METRICS)}
    draws: dict[str, list[Array]] = {name: [] for name in means}
    for guess, truth in zip(guesses, truths, strict=True):
        clips = len(truth)
        right = (guess == truth).double().numpy()
        chosen = np.random.default_rng(0).integers(0, clips, (RESAMPLES, clips))
        means["accuracy"].append(right.mean())
        draws["accuracy"].append(right[chosen].mean(1))
        counts = np.stack([np.bincount(draw, minlength=clips) for draw in chosen]).astype(np.float64)
        averages = measure_class_averages(truth.numpy(), guess.numpy(), classes)
        for name in CLASS_METRICS:
            means[name].append(averages[name].score())
            draws[name].append(averages[name].resample(counts))
    return summarize_scores(
        {
            name: {"mean": float(np.mean(means[name])), "std": float(np.mean(draws[name], axis=0).std())}
            for name in means
        },
        metric,
    )
