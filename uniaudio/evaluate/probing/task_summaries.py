"""What a reader of the scores must know of each task of a suite, and of those without scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from uniaudio.data.audio import ADVICE
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.lost_classes import UnmeasurableTaskError
from uniaudio.evaluate.probing.placeholder_classes import count_placeholders
from uniaudio.evaluate.probing.task_rows import TaskRows


def summarize_task(
    rows: TaskRows, notices: Tensor, data_sha256: str, unscored: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return what a reader of the scores must know of a task; numbers of clips are those of one fold on average.

    Args:
        rows: those that were used. notices: as in ``Embedded``. unscored: why models have no scores of it.
    """
    folds = len(rows.trials)
    return {
        "kind": rows.task.kind,
        "domain": rows.task.domain,
        "metric": rows.task.score_metric,
        **({"unseen": True} if rows.task.unseen else {}),
        "weight": rows.weight,
        "classes": len(rows.classes),
        "train": round(sum(len(trial.train) for trial in rows.trials) / folds),
        "test": round(sum(len(trial.test) for trial in rows.trials) / folds),
        "folds": folds if folds > 1 else None,
        **({"lost_classes": [asdict(one) for one in rows.lost]} if rows.lost else {}),
        **({"not_scored": dict(unscored)} if unscored else {}),
        "skipped": [asdict(skip) for skip in rows.skipped],
        "notices": {kind: n for kind, n in zip(ADVICE, notices.tolist(), strict=True) if n},
        "placeholders": count_placeholders(rows),
        "data_sha256": data_sha256,
        "license": rows.card.license or None,
    }


def summarize_unmeasured_task(
    rows: TaskRows, problem: UnmeasurableTaskError, data_sha256: str
) -> dict[str, Any]:
    """Return the same of a task without scores: it says why, as evaluation sets do, and has no numbers of clips.

    Args:
        rows: those that were to be used.
    """
    no_notices = torch.zeros(len(ADVICE), dtype=torch.int64)
    facts = summarize_task(replace(rows, skipped=problem.skipped), no_notices, data_sha256)
    facts |= {"classes": None, "train": None, "test": None, "folds": None, "placeholders": {}}
    return {**facts, "undefined": {rows.task.score_metric: problem.reason}}


def refuse_unmeasured_tasks(result: Mapping[str, Any]) -> None:
    """Refuse tasks, and models on tasks, that have no scores; those of the others are printed and written by then.

    Raises:
        UserError: with the reason of each.
    """
    sentences = []
    for name, facts in result["tasks"].items():
        sentences += [f"task {name}: {reason}" for reason in facts.get("undefined", {}).values()]
        sentences += [
            f"task {name}: {model} is not scored: {reason}"
            for model, reason in facts.get("not_scored", {}).items()
        ]
    if sentences:
        raise UserError("; ".join(sentences))
