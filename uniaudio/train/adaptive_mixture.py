"""An adaptive mixture: more draws for tasks whose validation loss still falls."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from uniaudio.config.stages import BalanceConfig

TINY = 1e-8


@dataclass(frozen=True)
class AdaptiveMixture:
    """Where the adaptive mixture of a stage is.

    Args:
        round: how often it was moved. factors: entry to what its share in the recipe is multiplied by.
        losses: task to its last validation loss per answer token.
    """

    round: int = 0
    factors: Mapping[str, float] = field(default_factory=dict)
    losses: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any] | None) -> AdaptiveMixture:
        return cls(**data) if data else cls()


def move_mixture_weights(
    balance: AdaptiveMixture,
    losses: Mapping[str, float],
    tasks_of: Mapping[str, Sequence[str]],
    settings: BalanceConfig,
) -> AdaptiveMixture:
    """Return the mixture of the next round.

    A task's progress is the relative fall of its validation loss since the round before, at least 0. An entry's factor
    is multiplied by ``exp(rate * (g - mean g) / max |g - mean g|)`` and kept within ``[1 / bound, bound]``; ``g`` is
    the mean progress of its tasks. Tasks without a validation loss count as average. The first round only measures.
    (Learning progress as a signal: Graves et al. 2017, section 3.1; the update is a bounded exponential weight.)

    Args:
        tasks_of: names of the recipe's entries to their tasks.
    """
    factors = {name: balance.factors.get(name, 1.0) for name in tasks_of}
    progress = {
        task: max(0.0, (balance.losses[task] - loss) / max(balance.losses[task], TINY))
        for task, loss in losses.items()
        if task in balance.losses
    }
    gains = {
        name: sum(known) / len(known)
        for name, tasks in tasks_of.items()
        if (known := [progress[task] for task in tasks if task in progress])
    }
    if gains:
        mean = sum(gains.values()) / len(gains)
        widest = max(max(abs(gain - mean) for gain in gains.values()), TINY)
        for name, gain in gains.items():
            # no overflow
            grown = factors[name] * math.exp(min(settings.rate * (gain - mean) / widest, 700.0))
            factors[name] = min(max(grown, 1 / settings.bound), settings.bound)
    return AdaptiveMixture(balance.round + 1, factors, dict(losses))


def compute_shares(usual: Sequence[tuple[str, float]], factors: Mapping[str, float]) -> list[float]:
    """Return the share of draws of every entry: its usual one times its factor, so that they add up to 1.

    Args:
        usual: (name, share) of the entries, of which several may have one name: a set that is trained on with an
            augmentation and replayed without it. factors: by name.
    """
    grown = [share * factors.get(name, 1.0) for name, share in usual]
    total = sum(grown)
    return [value / total for value in grown]
