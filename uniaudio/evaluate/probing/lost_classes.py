"""Classes of which no row of a split can be used: a task is probed without them, or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.skipped_rows import Skip
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.suite import TaskFile
from uniaudio.evaluate.probing.task_answers import list_labels


class UnmeasurableTaskError(UserError):
    """Too few rows of a task can be used to probe it.

    Args:
        reason: the message without the name of the task. skipped: the rows that cannot be used.
    """

    def __init__(self, message: str = "", reason: str = "", skipped: Sequence[Skip] = ()) -> None:
        super().__init__(message)
        self.reason, self.skipped = reason, tuple(skipped)


@dataclass(frozen=True)
class LostClass:
    """A class of which no row of a split, or fold, can be used; ``rows`` it has there."""

    label: str
    split: str
    rows: int

    def describe(self, is_fold: bool) -> str:
        """Return a sentence without its end."""
        where = f"class '{self.label}' in {'fold' if is_fold else 'split'} '{self.split}'"
        if self.rows == 1:
            return f"the only row of {where} cannot be used"
        return f"none of the {self.rows:,} rows of {where} can be used"


def find_lost_classes(
    task: TaskFile,
    answers: Sequence[object],
    parts: Mapping[str, NDArray[np.int64]],
    kept: NDArray[np.int64],
) -> list[LostClass]:
    """Return the classes that a task loses with some of its rows.

    A class is lost with its last row in the split that trains or in the one that tests. With folds it is lost when no
    fold has it any more, or a single one does, which could not be tested.

    Args:
        answers, parts: as in ``TaskRows``. kept: the rows that can be used, indices among ``answers``.
    """
    usable = set(kept.tolist())

    def count(rows: Iterable[int]) -> Counter[str]:
        return Counter(label for row in rows for label in set(list_labels(task, answers[row])))

    names = list(parts) if task.folds is not None else list(dict.fromkeys((task.train, task.test)))
    before = {name: count(parts[name].tolist()) for name in names}
    after = {name: count(usable.intersection(parts[name].tolist())) for name in names}
    lost = [
        LostClass(label, name, rows)
        for name in names
        for label, rows in sorted(before[name].items())
        if not after[name][label]
    ]
    if task.folds is None:
        return lost
    return [one for one in lost if sum(one.label in counts for counts in after.values()) < 2]


def describe_lost_classes(name: str, lost: Iterable[LostClass], is_fold: bool) -> list[str]:
    """Say without which classes a task is probed, and why."""
    return [f"{name}: {one.describe(is_fold)}, so the task is probed without this class" for one in lost]
