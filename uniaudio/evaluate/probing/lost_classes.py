"""Classes of which no row of a split can be used: a task is probed without them, or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.skipped_rows import Skip
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.skipped_row_notes import describe_first_skip
from uniaudio.evaluate.probing.suite import TaskFile
from uniaudio.evaluate.probing.task_answers import list_labels

MOST_NAMED = 5  # classes in one sentence


class UnmeasurableTaskError(UserError):
    """Too few rows of a task can be used to probe it.

    Args:
        reason: the message without the name of the task. skipped: the rows that cannot be used.
    """

    def __init__(self, message: str = "", reason: str = "", skipped: Sequence[Skip] = ()) -> None:
        super().__init__(message)
        self.reason, self.skipped = reason, tuple(skipped)

    @classmethod
    def of(cls, name: str, what: str, skipped: Sequence[Skip]) -> UnmeasurableTaskError:
        """Return the error of a task by its name, with its first unusable row."""
        reason = f"{what}{describe_first_skip(skipped)}"
        return cls(f"task {name}: {reason}", reason, skipped)


@dataclass(frozen=True)
class LostClass:
    """A class of which no row of a split, or fold, can be used; ``rows`` it has there.

    Args:
        trained: False where these rows can be used, but no row that trains has the class.
    """

    label: str
    split: str
    rows: int
    trained: bool = True

    def describe(self, is_fold: bool) -> str:
        """Return a sentence without its end."""
        if not self.trained:
            return f"none of the training rows has class '{self.label}'"
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
    names = list(parts) if task.folds is not None else list(dict.fromkeys((task.train, task.test)))
    before = {name: count_class_rows(task, answers, parts[name].tolist()) for name in names}
    after = {
        name: count_class_rows(task, answers, usable.intersection(parts[name].tolist())) for name in names
    }
    lost = [
        LostClass(label, name, rows)
        for name in names
        for label, rows in sorted(before[name].items())
        if not after[name][label]
    ]
    if task.folds is None:
        return lost
    return [one for one in lost if sum(one.label in counts for counts in after.values()) < 2]


def find_untrained_classes(
    task: TaskFile, answers: Sequence[object], parts: Mapping[str, NDArray[np.int64]]
) -> list[LostClass]:
    """Return the classes that are tested where no row that trains has them: with folds, those of one fold.

    Args:
        answers, parts: as in ``TaskRows``.
    """
    counts = {part: count_class_rows(task, answers, rows.tolist()) for part, rows in parts.items()}
    lost = []
    for part in [task.test] if task.folds is None else list(parts):
        others = [task.train] if task.folds is None else [other for other in parts if other != part]
        trained = {label for other in others for label in counts[other]}
        lost += [
            LostClass(label, part, rows, trained=False)
            for label, rows in counts[part].items()
            if label not in trained
        ]
    return sorted(lost, key=lambda one: (one.split, one.label))


def count_class_rows(task: TaskFile, answers: Sequence[object], rows: Iterable[int]) -> Counter[str]:
    """Return in how many of some rows each class occurs."""
    return Counter(label for row in rows for label in set(list_labels(task, answers[row])))


def describe_lost_classes(name: str, lost: Iterable[LostClass], is_fold: bool, kind: str) -> list[str]:
    """Say without which classes a task is probed, and why.

    Args:
        kind: of the task; where a clip has one class, the rows of classes that were never trained are left out.
    """
    sentences = []
    untrained: dict[str, list[LostClass]] = {}
    for one in lost:
        if one.trained:
            what = one.describe(is_fold)
            sentences.append(f"{name}: {what}, so the task is probed without this class")
        else:
            untrained.setdefault(one.split, []).append(one)
    for split, classes in untrained.items():
        is_one = len(classes) == 1
        where = f"{'fold' if is_fold else 'split'} '{split}'"
        named = ", ".join(f"'{one.label}'" for one in classes[:MOST_NAMED])
        more = f" and {len(classes) - MOST_NAMED:,} more" if len(classes) > MOST_NAMED else ""
        beginning = f"{name}: none of the training rows has class{'' if is_one else 'es'} {named}{more}"
        rows = sum(one.rows for one in classes)
        left_out = "its only row" if rows == 1 else f"{'its' if is_one else 'their'} {rows:,} rows"
        if kind == "clip":
            sentences.append(f"{beginning}, so {left_out} in {where} {'is' if rows == 1 else 'are'} left out")
        else:
            which = "this class" if is_one else "these classes"
            sentences.append(f"{beginning} of {where}, so the task is probed without {which}")
    return sentences
