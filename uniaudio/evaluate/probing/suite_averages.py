"""The averages of a suite over its tasks, by domain, and over the trained and the unseen ones:

    average = sum_t w_t s_t / sum_t w_t

over the tasks t that have a score by the probe, with s_t in [0, 1] and w_t the number of test clips of the task, unless
the suite states another weight. X-ARES (arXiv 2505.16369) averages so, and UniWhisper (arXiv 2602.21772) reports a
"normalised weighted average" over twenty tasks whose formula is not public; this one is our reading of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

DOMAINS = ("speech", "sound", "music")
Scores = Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]  # task -> model -> probe -> mean, std


@dataclass(frozen=True)
class TaskWeight:
    """What a task counts, and in which averages: its domain, whether everybody can repeat it, and whether its set was
    kept out of training.
    """

    weight: float
    domain: str | None
    private: bool = False
    unseen: bool = False


def average_with_weights(scores: Sequence[float], weights: Sequence[float]) -> float:
    """Return the mean of scores in [0, 1] by positive weights.

    Raises:
        ValueError: when there is none, or one lies outside of [0, 1].
    """
    if not scores:
        raise ValueError("there are no scores to average")
    if not all(0 <= score <= 1 for score in scores):
        raise ValueError(f"scores must lie in [0, 1], got {list(scores)}")
    total = sum(weights)
    return sum(score * weight for score, weight in zip(scores, weights, strict=True)) / total


def average_scores(
    scores: Scores, task_weights: Mapping[str, TaskWeight]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return the averages by model and probe: ``{model: {probe: {"all", "speech", "sound", "music", "public"}}}``.

    A model that has no scores of a task has no averages: they would be over other tasks than those of the other models.
    A part without scores is left out. "public" is there where a suite has private tasks: the average over the others;
    "trained" and "unseen" where it has sets that were kept out of training.
    """
    with_unseen = any(weight.unseen for weight in task_weights.values())
    with_private = any(weight.private for weight in task_weights.values())
    averages: dict[str, dict[str, dict[str, float]]] = {}
    for model in {model: None for models in scores.values() for model in models}:
        if not all(model in models for models in scores.values()):
            continue
        probes = {probe: None for models in scores.values() for probe in models[model]}
        averages[model] = {}
        for probe in probes:
            scored = [task for task, models in scores.items() if probe in models[model]]
            parts = {"all": scored}
            parts |= {d: [task for task in scored if task_weights[task].domain == d] for d in DOMAINS}
            if with_private:
                parts["public"] = [task for task in scored if not task_weights[task].private]
            for part in ("trained", "unseen") if with_unseen else ():
                parts[part] = [task for task in scored if task_weights[task].unseen == (part == "unseen")]
            averages[model][probe] = {
                part: average_with_weights(
                    [scores[task][model][probe]["mean"] for task in tasks],
                    [task_weights[task].weight for task in tasks],
                )
                for part, tasks in parts.items()
                if tasks
            }
    return averages
