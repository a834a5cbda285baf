"""Shallow probes on frozen embeddings: linear, MLP and k nearest neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

KINDS = ("linear", "mlp", "knn")
NEIGHBOURS = 10
TEMPERATURE = 0.07  # of the softmax over neighbours' similarities, as X-ARES has it (arXiv 2505.16369)
RESAMPLES = 200  # bootstrap draws of the test set, for the spread of the probe that has no seed


@dataclass(frozen=True)
class ProbeSettings:
    """Adam with a cosine schedule; the same for every set and model, so nothing is tuned on the test split."""

    epochs: int = 60
    batch: int = 32
    lr: float = 1e-3
    hidden: int = 256


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
    """Train S probes together on embeddings ``[N, E]``, each with its own weights and its own order of examples."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = build_probe(kind, seeds, x.shape[1], classes, settings)
        optimizer = torch.optim.Adam(probe.parameters(), settings.lr)
        batches = math.ceil(len(x) / settings.batch)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * batches)
        for _ in range(settings.epochs):
            order = torch.stack([torch.randperm(len(x)) for _ in range(seeds)])
            for rows in order.split(settings.batch, dim=1):
                logits = probe(x[rows])
                # the mean within a seed, summed over seeds: every seed sees the gradient it would see alone
                loss = (
                    F.cross_entropy(logits.flatten(0, 1), y[rows].flatten(), reduction="sum") / rows.shape[1]
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
    return probe.eval()


def knn_predict(train_x: Tensor, train_y: Tensor, test_x: Tensor, classes: int, block: int = 1024) -> Tensor:
    """Vote among the 10 nearest by cosine, weighted by softmax(similarity / 0.07); return class indices ``[M]``."""
    train_x, test_x = F.normalize(train_x, dim=1), F.normalize(test_x, dim=1)
    votes = []
    for rows in test_x.split(block):
        similarity, nearest = (rows @ train_x.T).topk(min(NEIGHBOURS, len(train_x)), dim=1)
        weights = (similarity / TEMPERATURE).softmax(1)
        votes.append(
            weights.new_zeros(len(rows), classes).scatter_add(1, train_y[nearest], weights).argmax(1)
        )
    return torch.cat(votes)


def probe(
    train_x: NDArray[np.float32],
    train_y: NDArray[np.int64],
    test_x: NDArray[np.float32],
    test_y: NDArray[np.int64],
    seeds: int = 3,
    settings: ProbeSettings = ProbeSettings(),
    kinds: Sequence[str] = KINDS,
) -> dict[str, dict[str, float]]:
    """Return the test accuracy of each probe: ``{"linear": {"mean", "std"}, "mlp": ..., "knn": ...}``.

    ``std`` is over seeds. kNN has no seed; its ``std`` is that of the accuracy over 200 bootstrap draws of the test
    set. Inputs of the trained probes are standardised with the mean and one overall scale of the training embeddings,
    so that the scale of an encoder plays no part.
    """
    x, y = torch.from_numpy(train_x), torch.from_numpy(train_y)
    test, truth = torch.from_numpy(test_x), torch.from_numpy(test_y)
    classes = int(max(train_y.max(), test_y.max())) + 1
    middle, scale = x.mean(0), (x - x.mean(0)).std().clamp(min=1e-6)
    results = {}
    for kind in (kind for kind in kinds if kind != "knn"):
        trained = train_probe(kind, (x - middle) / scale, y, classes, seeds, settings)
        with torch.no_grad():
            logits = trained(((test - middle) / scale).expand(seeds, -1, -1))
        accuracy = (logits.argmax(-1) == truth).double().mean(1)
        results[kind] = {"mean": accuracy.mean().item(), "std": accuracy.std(correction=0).item()}
    if "knn" not in kinds:
        return results
    right = (knn_predict(x, y, test, classes) == truth).double().numpy()
    draws = np.random.default_rng(0).integers(0, len(right), (RESAMPLES, len(right)))
    results["knn"] = {"mean": float(right.mean()), "std": float(right[draws].mean(1).std())}
    return results
