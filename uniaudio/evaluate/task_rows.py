"""The rows of a task: what is to be found in every clip, and which clips train, choose and test."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uniaudio.config.nearest import did_you_mean
from uniaudio.data.audio import FilePart
from uniaudio.data.card import DatasetCard
from uniaudio.data.field_values import ClassIndex, has_no_value, parse_list, wrap_value, write_value
from uniaudio.data.source import AudioRef, Row, open_source
from uniaudio.errors import RowError, UserError, convert_to_user_error
from uniaudio.evaluate.suite import TaskFile, split_names

Indices = NDArray[np.int64]


class Event(NamedTuple):
    """A sound of a class from ``onset`` to ``offset``, in seconds."""

    onset: float
    offset: float
    label: str


@dataclass(frozen=True)
class Trial:
    """Rows that train, choose (None where nothing does) and test a probe; with folds there is one trial for each."""

    train: Indices
    valid: Indices | None
    test: Indices


@dataclass(frozen=True)
class TaskRows:
    """The clips of one task and what is to be found in them.

    Args:
        splits: the card's splits, one after another the order of the rows.
        answers: of every row its class (text), its classes, its events or its texts.
        parts: rows by split or fold; X-ARES encodes each apart.
        classes: sorted; empty for retrieval.
    """

    name: str
    task: TaskFile
    card: DatasetCard
    splits: tuple[str, ...]
    answers: tuple[Any, ...]
    parts: Mapping[str, Indices]
    trials: tuple[Trial, ...]
    classes: tuple[str, ...]

    @property
    def weight(self) -> float:
        """What the task counts in averages: as the suite says, else its number of test clips, of one fold on average.

        So X-ARES has it: 400 for the 2000 clips and five folds of ESC-50.
        """
        return self.task.weight or sum(len(trial.test) for trial in self.trials) / len(self.trials)

    def rows(self) -> Iterator[Row]:
        """Yield the rows again, with their audio, in the order of ``answers``."""
        return usable_rows(self.card, self.splits)

    def class_index(self) -> dict[str, int]:
        return {label: number for number, label in enumerate(self.classes)}


def usable_rows(card: DatasetCard, splits: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of some splits.

    Raises:
        UserError: when a row cannot be used: a model must not be judged on fewer clips in silence.
    """
    for split in splits:
        for row in open_source(card, split).rows():
            if isinstance(row, RowError):
                raise UserError(
                    f"{card.path}: split '{split}': {row}; repair the row or leave it out by the split's keep"
                )
            yield row


def read_task(name: str, task: TaskFile, card: DatasetCard) -> TaskRows:
    """Read the columns of a task's rows and check them; no clip is decoded.

    Raises:
        UserError: when a column is missing or holds something else, a part has no rows, or a test label was never seen
            in training.
    """
    where = f"task {name}"
    splits = split_names(task, card)
    answers: list[Any] = []
    members: dict[str, list[int]] = {}
    for split in splits:
        for row in usable_rows(card, (split,)):
            fields = card.fields(row.columns)
            place = f"{where}: {card.name}: {row.key}"
            part = split
            if isinstance(task.folds, str):
                part = str(column(fields, task.folds, place))
            members.setdefault(part, []).append(len(answers))
            answers.append(answer_of(task, column(fields, task.answers, place), place))
    parts = {part: np.array(rows, dtype=np.int64) for part, rows in sorted(members.items())}
    trials = trials_of(task, parts, where)
    rows = TaskRows(name, task, card, splits, tuple(answers), parts, trials, classes_of(task, answers))
    check_labels(rows, where)
    return rows


def column(fields: Mapping[str, Any], name: str, where: str) -> Any:
    """Return a column of a row, or say which there are."""
    if name not in fields:
        raise UserError(
            f"{where}: has no column '{name}'{did_you_mean(name, list(fields))}; columns: "
            f"{', '.join(sorted(fields))}"
        )
    if isinstance(fields[name], RowError):
        raise UserError(f"{where}: {fields[name]}")
    if has_no_value(fields[name]):
        raise UserError(f"{where}: '{name}' has no value; leave the row out by the split's keep")
    return fields[name]


def answer_of(task: TaskFile, value: Any, where: str) -> Any:
    """Understand the column with the answer; see ``TaskRows.answers``."""
    if isinstance(value, str) and task.kind != "clip" and (listed := parse_list(value)) is not None:
        value = listed
    if task.kind == "clip":
        return text_of_class(value, task.answers, where)
    if task.kind == "frame":
        return events_of(value, task.frame.keys, where)
    if isinstance(value, Mapping):  # as X-ARES packs captions: numbered keys
        value = list(value.values())
    if isinstance(value, list | tuple):
        value = [
            str(item) if isinstance(item, ClassIndex) else item for item in value if not has_no_value(item)
        ]
    if isinstance(value, str):
        value = [value] if task.kind == "retrieval" else value.split(task.separator)
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{where}: '{task.answers}' must be a text or a list of texts, got {value!r}")
    found = tuple(item.strip() for item in value if item.strip())
    if task.kind == "retrieval" and not found:
        raise UserError(f"{where}: '{task.answers}' holds no text")
    return found


def text_of_class(value: Any, name: str, where: str) -> str:
    """Return the class of a clip as text.

    Raises:
        UserError: for a list or a mapping.
    """
    if isinstance(value, bool):
        return str(value)
    try:
        return str(write_value(wrap_value(value, name)))
    except RowError as problem:
        raise UserError(f"{where}: '{name}' must be one class ({problem.detail}), got {value!r}") from problem


def events_of(value: Any, keys: tuple[str, str, str], where: str) -> tuple[Event, ...]:
    """Read a list of mappings with beginning, end and class.

    Raises:
        UserError: when it is none, or an event ends before it begins.
    """
    onset, offset, label = keys
    try:
        events = tuple(Event(float(item[onset]), float(item[offset]), str(item[label])) for item in value)
    except (TypeError, KeyError, ValueError) as problem:
        raise UserError(f"{where}: events must be a list of {{{', '.join(keys)}}} ({problem})") from problem
    for event in events:
        if not 0 <= event.onset < event.offset < float("inf"):
            raise UserError(f"{where}: an event from {event.onset:g} to {event.offset:g} s is none")
    return events


def trials_of(task: TaskFile, parts: Mapping[str, Indices], where: str) -> tuple[Trial, ...]:
    """Return the trial of the official splits, or one for each fold.

    Raises:
        UserError: when a part has no rows or there is one fold only.
    """
    if task.folds is None:
        for split in (task.train, task.valid, task.test):
            if split is not None and split not in parts:
                raise UserError(f"{where}: split '{split}' holds no rows")
        valid = None if task.valid is None else parts[task.valid]
        return (Trial(parts[task.train], valid, parts[task.test]),)
    if len(parts) < 2:
        raise UserError(f"{where}: folds: found one fold only, {', '.join(parts)}")
    return tuple(
        Trial(np.sort(np.concatenate([rows for other, rows in parts.items() if other != fold])), None, rows)
        for fold, rows in parts.items()
    )


def classes_of(task: TaskFile, answers: Sequence[Any]) -> tuple[str, ...]:
    """Return the sorted classes of all rows; none for retrieval."""
    if task.kind == "retrieval":
        return ()
    if task.kind == "clip":
        return tuple(sorted(set(answers)))
    if task.kind == "frame":
        return tuple(sorted({event.label for events in answers for event in events}))
    return tuple(sorted({label for labels in answers for label in labels}))


def check_labels(rows: TaskRows, where: str) -> None:
    """Check that there is something to learn.

    Raises:
        UserError: when there are no two classes of clips, no class at all, or a test label that no training row has.
    """
    if rows.task.kind == "retrieval":
        return
    if len(rows.classes) < (2 if rows.task.kind == "clip" else 1):
        raise UserError(f"{where}: '{rows.task.answers}' names {len(rows.classes)} classes, too few to probe")
    if rows.task.kind == "clip":
        for trial in rows.trials:
            seen = {rows.answers[i] for i in trial.train}
            unseen = sorted({rows.answers[i] for i in trial.test} - seen)
            if unseen:
                raise UserError(f"{where}: the test label '{unseen[0]}' does not occur in its training rows")


def content_digest(rows: Iterator[Row]) -> str:
    """Return a SHA-256 over the encoded bytes of all clips, in order, as hexadecimal text."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(clip_digest(row.audio[0]))
    return digest.hexdigest()


def clip_digest(ref: AudioRef) -> bytes:
    """Return the SHA-256 of a clip's encoded bytes and the span that is taken of them.

    Raises:
        UserError: when it cannot be read.
    """
    source = ref.source
    with convert_to_user_error(f"{ref.name}: cannot be read"):
        path = source.path if isinstance(source, FilePart) else source
        if isinstance(path, Path) and not path.is_file():  # reading a pipe would wait for ever
            raise UserError(f"{ref.name}: there is no file {path}")
        if isinstance(source, FilePart):
            content = source.read()
        else:
            content = source.read_bytes() if isinstance(source, Path) else bytes(source)
    return hashlib.sha256(content + repr(ref.span).encode()).digest()
