"""Probes by the protocol of X-ARES (arXiv 2505.16369), its quirks included, for numbers beside published ones.

Its linear probe (called MLP there) is a LayerNorm and one Linear, trained alone: Adam at 1e-3, the rate falling along a
cosine from epoch to epoch towards a tenth, the last batch of an epoch smaller than the others, and of all epochs the
one with the best validation score is kept, the first of equals. Probes of frames and retrieval train so, too. Its kNN
divides the training embeddings by the norm of every *feature* over the training set, where the cosine would need the
norm of every vector; test vectors are divided by their own norm.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.evaluate.metrics.classification import mean_average_precision
from uniaudio.evaluate.probing.class_scores import (
    ProbeScores,
    score_classes,
    score_knn,
    summarize_scores,
)
from uniaudio.evaluate.probing.clip_probes import Fold, vote

SEED = 42  # X-ARES's; further seeds follow it
RATE = 1e-3
LAST_RATE = 0.1  # share of the rate that the cosine leads to; it would be reached one epoch after the last


def build_linear_probe(width: int, classes: int) -> nn.Sequential:
    """Return LayerNorm + Linear, what X-ARES calls its MLP: ``[..., E]`` to ``[..., K]``."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))


def train_sgd_probe(
    probe: nn.Module,
    count: int,
    epochs: int,
    batch: int,
    loss: Callable[[Tensor], Tensor],
    validate: Callable[[], float] | None,
) -> None:
    """Train a probe in place.

    The order of every epoch comes from torch's own generator. X-ARES draws it from the clock: its own runs differ.

    Args:
        count: number of training examples. loss: mean loss of the examples ``[B]`` (int64 indices), scalar.
        validate: score of the probe as it is, larger is better; the best epoch is kept. None: the last one is.
    """
    optimizer = torch.optim.Adam(probe.parameters(), RATE)
    best, kept = -math.inf, {}
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            fallen = (1 - math.cos(math.pi * epoch / epochs)) / 2
            group["lr"] = RATE + (LAST_RATE * RATE - RATE) * fallen
        probe.train()
        for examples in torch.randperm(count).split(batch):
            optimizer.zero_grad()
            loss(examples).backward()
            optimizer.step()
        probe.eval()
        if validate is None:
            continue
        with torch.no_grad():
            score = validate()
        if score > best:
            best = score
            kept = {name: tensor.clone() for name, tensor in probe.state_dict().items()}
    if kept:
        probe.load_state_dict(kept)


def score_over_seeds(
    score_trial: Callable[[int], dict[str, float]], trials: int, seeds: int, metric: str | None = None
) -> ProbeScores:
    """Return the scores of the probe "linear": the mean over trials, and its mean and spread over the seeds 42, 43 ...

    The random numbers of all trials come from one generator, in their order.

    Args:
        score_trial: trains and tests the probe of a trial, with random numbers from torch's own generator, and returns
            its scores by metric.
        metric: see ``summarize_scores``.
    """
    by_seed = []
    for seed in range(SEED, SEED + seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            by_seed.append([score_trial(number) for number in range(trials)])
    spreads = {}
    for name in by_seed[0][0]:
        means = [np.mean([scores[name] for scores in of_trials]) for of_trials in by_seed]
        spreads[name] = {"mean": float(np.mean(means)), "std": float(np.std(means))}
    return {"linear": summarize_scores(spreads, metric)}


@dataclass(frozen=True)
class XaresFold:
    """A fold with the clips that choose the epoch: embeddings ``[N, E]``, targets as in ``Fold``.

    Where a set has none, and with folds, X-ARES chooses on the test clips.
    """

    fold: Fold
    valid_x: Tensor
    valid_y: Tensor


def score_xares_folds(
    folds: Sequence[XaresFold],
    classes: int,
    seeds: int,
    epochs: int,
    batch: int,
    kinds: Sequence[str],
    metric: str | None = None,
) -> ProbeScores:
    """Return the scores of the probes as ``probe_folds`` does, with mean and spread over the seeds 42, 43 ... for
    "linear".

    The epoch is chosen by accuracy or mAP, whichever metric the task has. The probe "mlp" is none of this protocol and
    left out. kNN is scored as under the other protocol, see ``score_knn``.
    """
    results: ProbeScores = {}
    if "linear" in kinds:
        results |= score_over_seeds(
            lambda number: score_fold(folds[number], classes, epochs, batch), len(folds), seeds, metric
        )
    if "knn" in kinds:
        guesses = [
            predict_xares_knn(one.fold.train_x, one.fold.train_y, one.fold.test_x, classes) for one in folds
        ]
        results["knn"] = score_knn(guesses, [one.fold.test_y for one in folds], classes, metric)
    return results


def score_fold(chosen: XaresFold, classes: int, epochs: int, batch: int) -> dict[str, float]:
    """Train and test the probe of one fold; random numbers come from torch's own generator."""
    fold = chosen.fold
    probe = build_linear_probe(fold.train_x.shape[1], classes)
    train_sgd_probe(
        probe,
        len(fold.train_x),
        epochs,
        batch,
        lambda rows: compute_class_loss(probe(fold.train_x[rows]), fold.train_y[rows]),
        lambda: compute_class_score(probe(chosen.valid_x), chosen.valid_y),
    )
    with torch.no_grad():
        logits = probe(fold.test_x)
    if fold.test_y.is_floating_point():
        return {"mAP": compute_class_score(logits, fold.test_y)}
    scores = score_classes(logits.argmax(1)[None], fold.test_y, classes)
    return {name: value.item() for name, value in scores.items()}


def compute_class_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of class indices, or the binary one of float targets ``[N, K]``; the mean."""
    if targets.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, targets)
    return F.cross_entropy(logits, targets)


def compute_class_score(logits: Tensor, targets: Tensor) -> float:
    """Accuracy, or for float targets the mAP in which classes without positives count as 0."""
    if targets.is_floating_point():
        return mean_average_precision(logits.numpy(), targets.numpy(), absent=True)
    return (logits.argmax(1) == targets).double().mean().item()


def predict_xares_knn(train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int) -> Tensor:
    """Vote among 10 neighbours, weighted by softmax(similarity / 0.07); return class indices ``[M]``.

    ``train_x [N, E]`` is divided by the norm of each of its E columns, ``test_x [M, E]`` by that of each row.
    """
    return vote(F.normalize(train_x, dim=0), train_y, F.normalize(test_x, dim=1), classes)
