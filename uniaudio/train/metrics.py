"""What happened since the last row of metrics, added up over micro-batches, steps and ranks."""

from __future__ import annotations

import itertools
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from uniaudio.distributed import gather_objects, sum_over_ranks, world_size
from uniaudio.feature_cache import Clips
from uniaudio.types import Batch, LossSum
from uniaudio.units import GIB, MAXRSS_UNIT


@dataclass
class MetricSums:
    """Sums of one rank.

    Args:
        per_task: ``[K, 3]`` as in ``LossSum``, on the device: adding to it waits for nothing.
        token_rate: audio tokens per second of sound; more than that is padding. None where clips have a fixed number.
        waited: seconds the loop stood still for want of data. ids: of the examples, one list per step.
        fill: shares of the budget that the micro-batches used, of all ranks. spread: cost of the busiest rank over
            that of the mean one, by step.
        known, looked_up: frames of clips that frozen encoders did not have to compute, of so many looked up.
        choices: as in ``LossSum``, on the device. auxiliary: values of the auxiliary losses, by step.
    """

    per_task: Tensor
    token_rate: float | None
    audio_seconds: float = 0.0
    audio_tokens: int = 0
    waited: float = 0.0
    started: float = field(default_factory=time.monotonic)
    ids: list[list[str]] = field(default_factory=list)
    fill: list[float] = field(default_factory=list)
    spread: list[float] = field(default_factory=list)
    known: int = 0
    looked_up: int = 0
    choices: dict[str, Tensor] = field(default_factory=dict)
    auxiliary: dict[str, list[float]] = field(default_factory=dict)

    def add_costs(self, costs: Sequence[float], micro_batches: int) -> None:
        """Count the modelled costs of one step: one for each rank, of so many micro-batches each, in budgets."""
        mean = sum(costs) / len(costs)
        self.fill.append(mean / micro_batches)
        self.spread.append(max(costs) / mean if mean else 1.0)

    def add(self, batch: Batch, loss: LossSum, has_metrics: bool = True) -> None:
        """Count one micro-batch; its losses and choices only where its step was not left out."""
        self.audio_seconds += batch.audio_seconds
        self.audio_tokens += batch.audio_tokens
        if isinstance(batch.audio, Clips):
            known, looked_up = batch.audio.looked_up
            self.known += known
            self.looked_up += looked_up
        if not has_metrics:
            return
        self.per_task += loss.per_task
        for name, sums in loss.choices.items():
            self.choices[name] = self.choices.get(name, 0) + sums

    def add_auxiliary(self, values: Mapping[str, float]) -> None:
        """Note the auxiliary losses of one step, the same on every rank."""
        for name, value in values.items():
            self.auxiliary.setdefault(name, []).append(value)

    def average_choices_by_task(self, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
        """Return for each task the mean of what the encoder chose over the clips of all ranks."""
        choices: dict[str, dict[str, float]] = {}
        everyone = gather_objects({name: sums.tolist() for name, sums in self.choices.items()})
        for name in dict.fromkeys(name for sums in everyone for name in sums):
            for index, task in enumerate(tasks):
                total, clips = (
                    sum(sums[name][index][i] for sums in everyone if name in sums) for i in (0, 1)
                )
                if clips:
                    choices.setdefault(task, {})[name] = total / clips
        return choices

    def row(self, tasks: Sequence[str], with_ids: bool) -> dict[str, Any]:
        """Return the figures of all ranks together; every rank must call it at the same point.

        Losses and accuracies are means over answer tokens; tasks that did not occur are left out, and so are steps that
        were left out. The loss is None when there is no other step.
        """
        seconds = time.monotonic() - self.started
        device = self.per_task.device
        per_task = sum_over_ranks(self.per_task.double()).tolist()
        counts = [self.audio_seconds, self.waited, self.audio_tokens, self.known, self.looked_up]
        sums_of_rank = torch.tensor(counts, dtype=torch.float64, device=device)
        audio_seconds, waited, audio_tokens, known, looked_up = sum_over_ranks(sums_of_rank).tolist()
        tokens = sum(tokens_of for _, tokens_of, _ in per_task)
        has_rate = self.token_rate is not None and audio_tokens
        padding = 1 - audio_seconds * self.token_rate / audio_tokens if has_rate else 0.0
        seen = [(task, sums) for task, sums in zip(tasks, per_task, strict=True) if sums[1]]
        row: dict[str, Any] = {
            "loss": sum(loss for loss, _, _ in per_task) / tokens if tokens else None,
            "tasks": {task: loss / tokens_of for task, (loss, tokens_of, _) in seen},
            "accuracy": {task: right / tokens_of for task, (_, tokens_of, right) in seen},
            "answer_tokens": int(tokens),
            "seconds": seconds,
            "audio_seconds": audio_seconds,
            "audio_seconds_per_second": audio_seconds / seconds,
            "data_wait_share": waited / world_size() / seconds,
            "padding_share": padding,
            "budget_fill": sum(self.fill) / max(len(self.fill), 1),
            "cost_spread": sum(self.spread) / max(len(self.spread), 1),
            "memory_gib": memory_gib(device),
        }
        if looked_up:
            row["feature_cache_hits"] = known / looked_up
        if self.auxiliary:
            row["auxiliary"] = {name: sum(v) / len(v) for name, v in self.auxiliary.items()}
        if choices := self.average_choices_by_task(tasks):
            row["choices"] = choices
        if with_ids:
            steps = zip(*gather_objects(self.ids), strict=True)
            row["ids"] = [list(itertools.chain(*ranks)) for ranks in steps]
        return row


def memory_gib(device: torch.device) -> float:
    """Return the peak memory so far: of the device on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_UNIT / GIB
