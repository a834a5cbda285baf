"""One probe at a time: for what cannot be trained side by side, and for the protocol of X-ARES.

X-ARES (arXiv 2505.16369) trains so: Adam at 1e-3, the rate falling along a cosine from epoch to epoch towards a tenth,
the last batch of an epoch smaller than the others, and of all epochs the one with the best validation score is kept,
the first of equals.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

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
    score_trial: Callable[[int], float], trials: int, seeds: int
) -> dict[str, dict[str, float]]:
    """Return ``{"linear": {"mean", "std"}}``: the mean over trials, and its mean and spread over the seeds 42, 43 ...

    Args:
        score_trial: trains and tests the probe of one trial; its random numbers come from torch's own generator.
    """
    by_seed = []
    for seed in range(SEED, SEED + seeds):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            by_seed.append(np.mean([score_trial(number) for number in range(trials)]))
    return {"linear": {"mean": float(np.mean(by_seed)), "std": float(np.std(by_seed))}}
