"""Suites: which probes are run on which dataset cards, how their clips are split, and what each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from uniaudio.config.files import expand_path, find_file
from uniaudio.config.layers import read_layers
from uniaudio.config.schema import Strict, build
from uniaudio.data.card import DatasetCard, load_card
from uniaudio.errors import UserError

Domain = Literal["speech", "sound", "music"]
ProbeKind = Literal["linear", "mlp", "knn"]
TaskKind = Literal["clip", "multilabel", "frame", "retrieval"]
COLUMNS = {"clip": "label", "multilabel": "labels", "frame": "events", "retrieval": "text"}
ALLOWED: dict[str, tuple[ProbeKind, ...]] = {
    "clip": ("linear", "mlp", "knn"),
    "multilabel": ("linear", "mlp"),
    "frame": ("linear",),
    "retrieval": ("linear",),
}


class FrameFile(Strict):
    """How events in time are scored.

    Args:
        metric: ``segment_f1`` over segments of ``resolution`` seconds, or ``onset_f1`` with a ``collar`` in seconds.
        average: ``micro`` counts all classes together, ``macro`` is the mean over those that occur.
        keys: the names of beginning, end and class in an event of the column.
        positive_weight: weight of active frames in the loss of the probe.
    """

    metric: Literal["segment_f1", "onset_f1"] = "segment_f1"
    average: Literal["micro", "macro"] = "micro"
    resolution: PositiveFloat = 1.0
    collar: PositiveFloat = 0.2
    keys: tuple[str, str, str] = ("onset", "offset", "label")
    positive_weight: PositiveFloat = 1.0

    @field_validator("keys", mode="before")
    @classmethod
    def three_names(cls, keys: Any) -> Any:
        return tuple(keys) if isinstance(keys, list) else keys


class TaskFile(Strict):
    """One task of a suite.

    Args:
        column: where the answer of a row is: its class, its classes (a list, or a text cut at ``separator``), its
            events, or its text or texts. Default ``label``, ``labels``, ``events``, ``text``.
        train, valid, test: splits of the card. ``valid`` is used by the protocol of X-ARES alone.
        folds: in place of splits a column whose values are the folds, over all rows of the card, or a list of the
            card's splits that are the folds; the score is the mean over them.
        weight: what the task counts in averages; default its number of test clips.
        private: not part of the average over public tasks.
        epochs, batch: of frame and retrieval probes, and of every probe under the protocol of X-ARES.
        crop, encode: seconds of the pieces that X-ARES cuts clips into, and how many it pads to one length.
    """

    dataset: str
    kind: TaskKind = "clip"
    domain: Domain
    column: str | None = None
    separator: str = Field(";", min_length=1)
    train: str = "train"
    valid: str | None = None
    test: str = "test"
    folds: str | tuple[str, ...] | None = None
    weight: PositiveFloat | None = None
    probes: tuple[ProbeKind, ...] | None = Field(None, min_length=1)
    private: bool = False
    frame: FrameFile = FrameFile()
    epochs: PositiveInt = 10
    batch: PositiveInt = 32
    crop: PositiveFloat | None = None
    encode: PositiveInt = 16

    @field_validator("folds", "probes", mode="before")
    @classmethod
    def several(cls, names: Any) -> Any:
        return tuple(names) if isinstance(names, list) else names

    @model_validator(mode="after")
    def fits(self) -> TaskFile:
        refused = sorted(set(self.kinds) - set(ALLOWED[self.kind]))
        if refused:
            raise ValueError(
                f"probes: {refused[0]} does not work for kind {self.kind}; give {', '.join(ALLOWED[self.kind])}"
            )
        if isinstance(self.folds, tuple) and len(self.folds) < 2:
            raise ValueError("folds: name at least two splits")
        if self.kind == "frame" and self.crop is not None:
            raise ValueError("crop: clips with events are not cropped")
        return self

    @property
    def kinds(self) -> tuple[ProbeKind, ...]:
        """The probes that are run: all three for classes of clips, else the linear one alone."""
        return self.probes or (ALLOWED["clip"] if self.kind == "clip" else ("linear",))

    @property
    def answers(self) -> str:
        """The column with the answer."""
        return self.column or COLUMNS[self.kind]

    @property
    def metric(self) -> str:
        """What the score is: accuracy, mAP, an F1 or recall@1."""
        if self.kind == "frame":
            return self.frame.metric
        return {"clip": "accuracy", "multilabel": "mAP", "retrieval": "recall@1"}[self.kind]


class SuiteFile(Strict):
    """The keys of a suite; a task that is null is left out, so that a suite can drop what its ``base`` has."""

    suite: str
    text_model: str | None = None
    tasks: dict[str, TaskFile | None] = Field(min_length=1)


@dataclass(frozen=True)
class Suite:
    """A suite with its cards. ``text_model`` is the folder or Hub name of what reads texts for retrieval, or None."""

    name: str
    tasks: Mapping[str, tuple[TaskFile, DatasetCard]]
    text_model: str | None


def load_suite(name_or_path: str) -> Suite:
    """Read a suite and its cards, and check that they fit each other; no row is read.

    Raises:
        UserError: naming file and key: an unknown key, card or split, a retrieval task without a text model, two
            clips in a row.
    """
    path = find_file("suite", name_or_path)
    data = build(SuiteFile, read_layers(path, "suite"), str(path))
    if data.suite != path.stem:
        raise UserError(f"{path}: suite is '{data.suite}', but the file is {path.stem}.yaml; make them equal")
    tasks = {}
    for name, task in data.tasks.items():
        if task is None:
            continue
        card = load_card(task.dataset, path.parent)
        check_splits(task, card, f"{path}: tasks.{name}")
        tasks[name] = (task, card)
    if not tasks:
        raise UserError(f"{path}: all tasks are null")
    if data.text_model is None:
        wanting = [name for name, (task, _) in tasks.items() if task.kind == "retrieval"]
        if wanting:
            raise UserError(f"{path}: tasks.{wanting[0]} is of kind retrieval; name a text_model for it")
    text_model = (
        None if data.text_model is None else expand_path(data.text_model, path.parent, f"{path}: text_model")
    )
    return Suite(data.suite, tasks, text_model)


def check_splits(task: TaskFile, card: DatasetCard, where: str) -> None:
    """Check that a card has the splits of a task and one clip in a row.

    Raises:
        UserError: naming the task.
    """
    if len(card.audio) != 1:
        raise UserError(f"{where}: a row of {card.name} has {len(card.audio)} clips; a probe takes one")
    for split in split_names(task, card):
        try:
            card.split(split)
        except UserError as problem:
            raise UserError(f"{where}: {problem}") from problem


def split_names(task: TaskFile, card: DatasetCard) -> tuple[str, ...]:
    """Return the splits whose rows a task needs, each once.

    With folds in a column these are all splits of the card, which by then must not overlap.
    """
    if isinstance(task.folds, tuple):
        return task.folds
    if task.folds is not None:
        return tuple(card.splits)
    return tuple(dict.fromkeys(s for s in (task.train, task.valid, task.test) if s is not None))
