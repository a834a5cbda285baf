"""Auxiliary losses of a step: sums of all micro-batches and ranks first, then the loss, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uniaudio.distributed import gather_objects, world_size
from uniaudio.types import Auxiliary


@dataclass
class AuxiliaryLosses:
    """Collects what the forwards of one step return; see ``types.Auxiliary``.

    A rank that lacks a loss (all rows of its micro-batches were left out) takes part with nothing.
    """

    held: dict[str, list[Auxiliary]] = field(default_factory=dict)

    def add(self, losses: Mapping[str, Auxiliary]) -> None:
        """Keep the losses of one micro-batch."""
        for name, loss in losses.items():
            self.held.setdefault(name, []).append(loss)

    def compute_objective(self) -> tuple[Tensor | None, dict[str, float]]:
        """Return what to add to the last micro-batch's objective, and the value of every loss.

        Every rank must call it at the same point. A loss is ``g(sum of sums / sum of counts)`` over the global batch.
        Each rank holds the other ranks' sums constant, so its gradient is that of its own sums; data parallelism
        averages over ranks, hence the factor.
        """
        sums_of_rank = {
            name: torch.stack([part.sums for part in parts]).sum(0) for name, parts in self.held.items()
        }
        all_facts = gather_objects(
            {
                name: (sums_of_rank[name].detach().tolist(), sum(part.count for part in parts))
                for name, parts in self.held.items()
            }
        )
        terms: list[Tensor] = []
        values: dict[str, float] = {}
        for name, parts in sorted(self.held.items()):
            everyone = [facts[name] for facts in all_facts if name in facts]
            total = sums_of_rank[name].new_tensor([sums for sums, _ in everyone], dtype=torch.float64).sum(0)
            count = sum(number for _, number in everyone)
            sums = sums_of_rank[name] + (total.to(sums_of_rank[name].dtype) - sums_of_rank[name].detach())
            loss = parts[0].loss(sums / max(count, 1.0))
            terms.append(loss)
            values[name] = float(loss.detach())
        return (world_size() * torch.stack(terms).sum() if terms else None), values
