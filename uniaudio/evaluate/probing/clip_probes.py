"""Shallow probes on frozen embeddings: linear, MLP and k nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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

ProbeKind = Literal["linear", "mlp", "knn"]
KINDS: tuple[ProbeKind, ...] = ("linear", "mlp", "knn")
NEIGHBOURS = 10
TEMPERATURE = 0.07  # of the softmax over neighbours' similarities, as X-ARES has it (arXiv 2505.16369)


@dataclass(frozen=True)
class ProbeSettings:
    """Adam with a cosine schedule; the same for every set and model, so nothing is tuned on the test split.

    Args:
        epochs, batch: of small sets. least_epochs, steps: a probe takes about ``steps`` optimizer steps at most. A set
            that needs more first gets fewer epochs, down to ``least_epochs``, then larger batches.
        hidden: width of the MLP.
    """

    epochs: int = 60
    batch: int = 32
    lr: float = 1e-3
    hidden: int = 256
    least_epochs: int = 10
    steps: int = 800

    def plan(self, count: int) -> tuple[int, int]:
        """Return the epochs and the batch for ``count`` training clips."""
        batch = max(self.batch, math.ceil(count * min(self.least_epochs, self.epochs) / self.steps))
        epochs = max(self.least_epochs, self.steps // math.ceil(count / batch))
        return min(self.epochs, epochs), batch


@dataclass(frozen=True)
class Fold:
    """Embeddings ``[N, E]`` and targets of the clips that train and that test a probe.

    Targets are class indices ``[N]`` int64, or ``[N, K]`` float where a clip may be of several classes.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    def standardize(self) -> Fold:
        """Return the fold with the mean and one overall scale of its training embeddings taken out."""
        middle = self.train_x.mean(0)
        scale = (self.train_x - middle).std().clamp(min=1e-6)
        return Fold(
            (self.train_x - middle) / scale, self.train_y, (self.test_x - middle) / scale, self.test_y
        )


class SeedwiseLinear(nn.Module):
    """S independent linear layers side by side: ``[S, N, I]`` to ``[S, N, O]``."""

    def __init__(self, seeds: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(seeds, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(seeds, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class SeedwiseNorm(nn.Module):
    """S independent layer norms: normalised over the last axis, scaled per seed."""

    def __init__(self, seeds: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(seeds, 1, width))
        self.bias = nn.Parameter(torch.zeros(seeds, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight + self.bias


def build_probe(kind: str, seeds: int, width: int, classes: int, settings: ProbeSettings) -> nn.Sequential:
    """Return LayerNorm + Linear ("linear") or LayerNorm + Linear + GELU + Linear ("mlp"), for all seeds at once."""
    if kind == "linear":
        return nn.Sequential(SeedwiseNorm(seeds, width), SeedwiseLinear(seeds, width, classes))
    return nn.Sequential(
        SeedwiseNorm(seeds, width),
        SeedwiseLinear(seeds, width, settings.hidden),
        nn.GELU(),
        SeedwiseLinear(seeds, settings.hidden, classes),
    )


def train_probe(
    kind: str, x: Tensor, y: Tensor, classes: int, seeds: int, settings: ProbeSettings = ProbeSettings()
) -> nn.Sequential:
    """Train S probes together on embeddings ``[N, E]``, each with its own weights and its own order of examples.

    With F folds of equal size, ``x [F, N, E]`` and ``y [F, N, ...]``, the F * S probes are trained together; those of a
    fold follow one another. Classes are learned by cross-entropy, several of them in a clip (float targets) by the
    binary one, mean over the classes.
    """
    folds, fold_y = (x, y) if x.dim() == 3 else (x[None], y[None])
    members, count = len(folds) * seeds, folds.shape[1]
    build_fold = torch.arange(len(folds)).repeat_interleave(seeds)[:, None]
    epochs, batch = settings.plan(count)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = build_probe(kind, members, x.shape[-1], classes, settings)
        optimizer = torch.optim.Adam(probe.parameters(), settings.lr, fused=True)
        batches = math.ceil(count / batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * batches)
        for _ in range(epochs):
            order = torch.stack([torch.randperm(count) for _ in range(members)])
            for rows in order.split(batch, dim=1):
                # the mean within a probe, summed over probes: every one sees the gradient it would see alone
                loss = sum_losses(probe(folds[build_fold, rows]), fold_y[build_fold, rows]) / rows.shape[1]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return probe.eval()


def sum_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of logits ``[M, N, K]``, summed over probes and clips: scalar."""
    if targets.is_floating_point():
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / logits.shape[-1]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def predict_knn(train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int, block: int = 1024) -> Tensor:
    """Vote among the 10 nearest by cosine, weighted by softmax(similarity / 0.07); return class indices ``[M]``."""
    return vote(F.normalize(train_x, dim=1), train_y, F.normalize(test_x, dim=1), classes, block)


def vote(train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int, block: int = 1024) -> Tensor:
    """Let the 10 training vectors of the largest dot product vote, by softmax(product / 0.07): class indices ``[M]``.

    Args:
        train_x, test_x: ``[N, E]`` and ``[M, E]``, normalised as the caller likes. block: rows of a product at a time.
    """
    guesses = []
    for rows in test_x.split(block):
        similarity, nearest = (rows @ train_x.T).topk(min(NEIGHBOURS, len(train_x)), dim=1)
        weights = (similarity / TEMPERATURE).softmax(1)
        votes = weights.new_zeros(len(rows), classes).scatter_add(1, train_y[nearest], weights)
        guesses.append(votes.argmax(1))
    return torch.cat(guesses)


def probe_folds(
    folds: Sequence[Fold],
    classes: int,
    seeds: int = 3,
    settings: ProbeSettings = ProbeSettings(),
    kinds: Sequence[str] = KINDS,
    metric: str | None = None,
) -> ProbeScores:
    """Return the scores of each probe, the mean over folds: ``{"linear": {"mean", "std", "metrics"}, "mlp": ...}``.

    ``mean`` and ``std`` are those of ``metric``: by default accuracy, or mAP where clips may be of several classes.
    ``metrics`` holds accuracy, UAR and macro-F1 of single classes. ``std`` is over seeds; for kNN see ``score_knn``.
    Inputs of the trained probes are standardised with the mean and one overall scale of the training embeddings, so
    that the scale of an encoder plays no part.
    """
    results = {}
    for kind in (kind for kind in kinds if kind != "knn"):
        spreads = {}
        for name, scores in score_trained_probes(kind, folds, classes, seeds, settings).items():
            by_seed = scores.mean(0)
            spreads[name] = {"mean": by_seed.mean().item(), "std": by_seed.std(correction=0).item()}
        results[kind] = summarize_scores(spreads, metric)
    if "knn" in kinds:
        guesses = [predict_knn(fold.train_x, fold.train_y, fold.test_x, classes) for fold in folds]
        results["knn"] = score_knn(guesses, [fold.test_y for fold in folds], classes, metric)
    return results


def score_trained_probes(
    kind: str, folds: Sequence[Fold], classes: int, seeds: int, settings: ProbeSettings
) -> dict[str, Tensor]:
    """Train the probes of all folds and return their scores ``[F, S]`` float64 by metric; folds of equal size train
    together.
    """
    scores: dict[int, dict[str, Tensor]] = {}
    for size in sorted({len(fold.train_x) for fold in folds}):
        members = [number for number, fold in enumerate(folds) if len(fold.train_x) == size]
        chosen = [folds[number].standardize() for number in members]
        trained = train_probe(
            kind,
            torch.stack([fold.train_x for fold in chosen]),
            torch.stack([fold.train_y for fold in chosen]),
            classes,
            seeds,
            settings,
        )
        for place, (number, fold) in enumerate(zip(members, chosen, strict=True)):
            seed_slice = slice(place * seeds, (place + 1) * seeds)
            with torch.no_grad():
                logits = compute_member_logits(trained, seed_slice, fold.test_x)
            scores[number] = score_logits(logits, fold.test_y)
    return {name: torch.stack([scores[number][name] for number in range(len(folds))]) for name in scores[0]}


def compute_member_logits(probe: nn.Sequential, members: slice, x: Tensor) -> Tensor:
    """Apply some of the probes that were trained together to embeddings ``[N, E]``: ``[S, N, K]``."""
    hidden = x.expand(members.stop - members.start, -1, -1)
    for layer in probe:
        parameters = {name: tensor[members] for name, tensor in layer.named_parameters()}
        hidden = torch.func.functional_call(layer, parameters, (hidden,))
    return hidden


def score_logits(logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Return the scores of single classes, or mAP, of logits ``[S, N, K]``, one float64 for each seed."""
    if not truth.is_floating_point():
        return score_classes(logits.argmax(-1), truth, logits.shape[-1])
    precisions = [mean_average_precision(seed_logits.numpy(), truth.numpy()) for seed_logits in logits]
    return {"mAP": torch.tensor(precisions, dtype=torch.float64)}
