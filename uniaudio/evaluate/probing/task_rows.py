"""The rows of a task: what is to be found in every clip, and which clips train, choose and test."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.card import DatasetCard
from uniaudio.data.encoded_audio import FilePart, RemoteClip, require_file
from uniaudio.data.skipped_rows import Skip
from uniaudio.data.sources.base import AudioRef, Row
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import RowError, UserError, convert_to_row_error
from uniaudio.evaluate.probing.lost_classes import (
    LostClass,
    UnmeasurableTaskError,
    find_lost_classes,
    find_untrained_classes,
)
from uniaudio.evaluate.probing.skipped_row_notes import describe_first_skip
from uniaudio.evaluate.probing.suite import TaskFile, list_splits, split_names
from uniaudio.evaluate.probing.task_answers import (
    format_class,
    list_labels,
    parse_answer,
    read_column,
    remove_labels,
)

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Trial:
    """Rows that train, choose (None where nothing does) and test a probe; with folds there is one trial for each."""

    train: Indices
    valid: Indices | None
    test: Indices


@dataclass(frozen=True)
class TaskRows:
    """The clips of one task that can be used, and what is to be found in them.

    Args:
        splits: the card's splits, one after another the order of the rows.
        numbers: ``[N]`` int64: of every row its place among all rows of the splits, which the unusable ones are, too.
        keys: of every row its name, such as that of its file.
        answers: of every row its class (text), its classes, its events or its texts.
        parts: rows by split or fold; X-ARES encodes each apart.
        classes: sorted; empty for retrieval.
        skipped: the rows that cannot be used, and why.
        clips: of every row ``[S]`` int16 at 16 kHz, where they are held in memory, see ``hold_clips``.
        lost: classes that the task is probed without.
    """

    name: str
    task: TaskFile
    card: DatasetCard
    splits: tuple[str, ...]
    numbers: Indices
    keys: tuple[str, ...]
    answers: tuple[Any, ...]
    parts: Mapping[str, Indices]
    trials: tuple[Trial, ...]
    classes: tuple[str, ...]
    skipped: tuple[Skip, ...] = ()
    clips: tuple[NDArray[np.int16], ...] | None = None
    lost: tuple[LostClass, ...] = ()

    @property
    def weight(self) -> float:
        """What the task counts in averages: as the suite says, else its number of test clips, of one fold on average.

        So X-ARES has it: 400 for the 2000 clips and five folds of ESC-50.
        """
        return self.task.weight or sum(len(trial.test) for trial in self.trials) / len(self.trials)

    def rows(self) -> Iterator[Row]:
        """Yield the rows again, with their audio, in the order of ``answers``."""
        kept = set(self.numbers.tolist())
        for number, (_, row) in enumerate(iterate_split_rows(self.card, self.splits)):
            if number in kept:
                if isinstance(row, RowError):  # the data has changed since it was read
                    raise UserError(f"task {self.name}: {row}; its data changed during probing")
                yield row

    def class_index(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.classes)}

    def drop(self, skips: Mapping[int, Skip]) -> TaskRows:
        """Return the task without some rows, by their index among ``answers``, and without the classes that are lost
        with them, see ``find_lost_classes``.

        Raises:
            UnmeasurableTaskError: when a split or fold has no row left, or too few classes are.
        """
        if not skips:
            return self
        kept = np.setdiff1d(np.arange(len(self.answers)), list(skips))
        whole = replace(self, skipped=(*self.skipped, *skips.values()))
        for part, rows in self.parts.items():
            if not np.isin(rows, kept).any():
                raise whole.refuse(f"no row of '{part}' can be used")
        return whole.drop_classes(find_lost_classes(self.task, self.answers, self.parts, kept), kept)

    def drop_classes(self, lost: Sequence[LostClass], kept: Indices) -> TaskRows:
        """Return the task with some of its rows, in ascending order, and without some of its classes.

        Raises:
            UnmeasurableTaskError: when too few classes are left.
        """
        whole = replace(self, lost=(*self.lost, *lost))
        labels = {one.label for one in lost}
        if self.task.kind == "clip":
            kept = np.array([i for i in kept if self.answers[i] not in labels], dtype=np.int64)
        elif labels:
            answers = tuple(remove_labels(self.task, answer, labels) for answer in self.answers)
            whole = replace(whole, answers=answers)
        parts = {part: rows[np.isin(rows, kept)] for part, rows in self.parts.items()}
        left = whole.select(kept, parts)
        if lost and not (all(map(len, parts.values())) and left.has_classes):
            raise self.refuse(f"too few classes are left: {lost[0].describe(self.task.folds is not None)}")
        return left

    @property
    def has_classes(self) -> bool:
        """Whether there are classes enough to probe, and every trial tests some."""
        tested = [any(list_labels(self.task, self.answers[i]) for i in trial.test) for trial in self.trials]
        return len(self.classes) >= count_least_classes(self.task) and all(tested)

    def refuse(self, what: str) -> UnmeasurableTaskError:
        """Return the error of a task that cannot be probed, with its first unusable row."""
        return UnmeasurableTaskError.of(self.name, what, self.skipped)

    def select(self, kept: Indices, parts: Mapping[str, Indices]) -> TaskRows:
        """Return the task with some of its rows, in ascending order, and these parts of them.

        Args:
            kept, parts: indices of rows among ``answers``.
        """
        index = np.full(len(self.answers), -1, dtype=np.int64)
        index[kept] = np.arange(len(kept))
        moved = {part: index[rows] for part, rows in parts.items()}
        answers = tuple(self.answers[i] for i in kept)
        return replace(
            self,
            numbers=self.numbers[kept],
            keys=tuple(self.keys[i] for i in kept),
            answers=answers,
            parts=moved,
            trials=build_trials(self.task, moved, self.name, self.skipped),
            classes=list_classes(self.task, answers),
            clips=None if self.clips is None else tuple(self.clips[i] for i in kept),
        )


def iterate_split_rows(card: DatasetCard, splits: Sequence[str]) -> Iterator[tuple[str, Row | RowError]]:
    """Yield all rows of some splits with the name of the split; a row that cannot be used comes as its error."""
    for split in splits:
        for row in open_source(card, split).rows():
            yield split, row


def read_task(name: str, task: TaskFile, card: DatasetCard) -> TaskRows:
    """Read the columns of a task's rows and check them; no clip is decoded.

    Classes that no row that trains has are left out, see ``leave_out_untrained_classes``.

    Raises:
        UserError: when no row can be used, or no test label occurs in training.
        UnmeasurableTaskError: when no row of a part can be used, or too few classes are left.
    """
    splits = split_names(task, card)
    numbers: list[int] = []
    keys: list[str] = []
    answers: list[Any] = []
    members: dict[str, list[int]] = {}
    skipped: list[Skip] = []
    for number, (split, row) in enumerate(iterate_split_rows(card, splits)):
        try:
            if isinstance(row, RowError):
                raise row
            part, answer = read_answer(task, card, split, row)
            if part is None:
                continue
        except RowError as problem:
            key = row.key if isinstance(row, Row) else f"row {number}"
            skipped.append(Skip.of(card.name, key, problem))
            continue
        members.setdefault(part, []).append(len(answers))
        numbers.append(number)
        keys.append(row.key)
        answers.append(answer)
    if not answers:
        raise UserError(f"task {name}: no row can be used{describe_first_skip(skipped)}")
    parts = {
        part: sample_rows(np.array(rows, dtype=np.int64), task.max_clips, f"{name} {part}")
        for part, rows in sorted(members.items())
    }
    rows = TaskRows(
        name,
        task,
        card,
        splits,
        np.array(numbers, dtype=np.int64),
        tuple(keys),
        tuple(answers),
        parts,
        build_trials(task, parts, name, skipped),
        list_classes(task, answers),
        tuple(skipped),
    )
    if task.max_clips is not None:
        rows = rows.select(np.sort(np.concatenate(list(parts.values()))), parts)
    if len(rows.classes) < count_least_classes(task):
        count = f"{len(rows.classes)} {'class' if len(rows.classes) == 1 else 'classes'}"
        raise rows.refuse(f"'{task.answers}' names {count}, too few to probe")
    return leave_out_untrained_classes(rows)


def sample_rows(rows: Indices, most: int | None, seed: str) -> Indices:
    """Return at most so many rows, in ascending order; which ones is a function of their number and the seed."""
    if most is None or len(rows) <= most:
        return rows
    return np.array(sorted(random.Random(seed).sample(rows.tolist(), most)), dtype=np.int64)


def read_answer(task: TaskFile, card: DatasetCard, split: str, row: Row) -> tuple[str | None, Any]:
    """Return the part that a row belongs to (None: to none) and what is to be found in it; see ``TaskRows``.

    Raises:
        RowError: when a column is missing or holds something else.
    """
    with convert_to_row_error("broken metadata", row.key):
        fields = card.fields(row.columns)
        part = split
        if isinstance(task.folds, str):
            part = format_class(read_column(fields, task.folds), task.folds)
            if not part:
                raise RowError("missing column", f"'{task.folds}' has no value")
        if task.split_column is not None:
            part = format_class(read_column(fields, task.split_column), task.split_column)
            if part not in list_splits(task):
                return None, None
        return part, parse_answer(task, read_column(fields, task.answers))


def build_trials(
    task: TaskFile, parts: Mapping[str, Indices], name: str, skipped: Sequence[Skip]
) -> tuple[Trial, ...]:
    """Return the trial of the official splits, or one for each fold.

    Args:
        name: of the task, for messages.

    Raises:
        UnmeasurableTaskError: when a part has no rows or there is one fold only.
    """
    if task.folds is None:
        for split in (task.train, task.valid, task.test):
            if split is not None and split not in parts:
                raise UnmeasurableTaskError.of(name, f"split '{split}' holds no usable rows", skipped)
        valid = None if task.valid is None else parts[task.valid]
        return (Trial(parts[task.train], valid, parts[task.test]),)
    if len(parts) < 2:
        raise UnmeasurableTaskError.of(name, f"folds: found only one fold, {', '.join(parts)}", skipped)
    return tuple(
        Trial(np.sort(np.concatenate([rows for other, rows in parts.items() if other != fold])), None, rows)
        for fold, rows in parts.items()
    )


def list_classes(task: TaskFile, answers: Sequence[Any]) -> tuple[str, ...]:
    """Return the sorted classes of all rows; none for retrieval."""
    return tuple(sorted({label for answer in answers for label in list_labels(task, answer)}))


def count_least_classes(task: TaskFile) -> int:
    """Return how many classes a task needs at least."""
    return {"clip": 2, "retrieval": 0}.get(task.kind, 1)


def leave_out_untrained_classes(rows: TaskRows) -> TaskRows:
    """Return a task without the classes that no row that trains has, see ``find_untrained_classes``; where a clip has
    one class, without their rows.

    Raises:
        UserError: when no test label occurs in training.
        UnmeasurableTaskError: when too few classes are left.
    """
    lost = find_untrained_classes(rows.task, rows.answers, rows.parts)
    if not lost:
        return rows
    labels = {one.label for one in lost}
    tested = [rows.answers[i] for trial in rows.trials for i in trial.test]
    if all(label in labels for answer in tested for label in list_labels(rows.task, answer)):
        sampled = "" if rows.task.max_clips is None else "; raise max_clips, or leave it out"
        raise UserError(
            f"task {rows.name}: no test label, such as '{lost[0].label}', occurs in its training rows"
            f"{sampled}{describe_first_skip(rows.skipped)}"
        )
    return rows.drop_classes(lost, np.arange(len(rows.answers)))


def hash_contents(rows: Iterator[Row]) -> str:
    """Return a SHA-256 over the encoded bytes of all clips, in order, as hexadecimal text."""
    digest = hashlib.sha256()
    for row in rows:
        try:
            digest.update(hash_clip(row.audio[0]))
        except RowError:  # it is skipped with its reason when it is decoded
            digest.update(b"unreadable")
    return digest.hexdigest()


def hash_clip(ref: AudioRef) -> bytes:
    """Return the SHA-256 of a clip's encoded bytes, the span that is taken of them and the length that its row states.

    Raises:
        RowError: when it cannot be read.
    """
    with convert_to_row_error("broken audio", ref.name):
        source = require_file(ref.source.fetch() if isinstance(ref.source, RemoteClip) else ref.source)
        if isinstance(source, FilePart):
            content = source.read()
        else:
            content = source.read_bytes() if isinstance(source, Path) else bytes(source)
    stated = "" if ref.span is not None or ref.seconds is None else f"{ref.seconds} s"
    return hashlib.sha256(content + f"{ref.span!r}{stated}".encode()).digest()
