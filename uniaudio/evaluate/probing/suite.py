"""Suites: which probes are run on which dataset cards, how their clips are split, and what each counts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from uniaudio.config.base_files import read_layers
from uniaudio.config.path_variables import expand_path
from uniaudio.config.records import Strict, build
from uniaudio.config.search_paths import find_file, require_name_of_file
from uniaudio.config.usual_names import SUITE_NAMES, UsualNames
from uniaudio.data.card import DatasetCard, load_card
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.clip_probes import KINDS, ProbeKind

Domain = Literal["speech", "sound", "music"]
TaskKind = Literal["clip", "multilabel", "frame", "retrieval"]
COLUMNS = {"clip": "label", "multilabel": "labels", "frame": "events", "retrieval": "text"}
ALLOWED: dict[str, tuple[ProbeKind, ...]] = {
    "clip": KINDS,
    "multilabel": ("linear", "mlp"),
    "frame": ("linear",),
    "retrieval": ("linear",),
}


class FrameFile(Strict):
    """Scoring of a task with events in time (`kind: frame`).

    Read by: probe.
    """

    metric: Literal["segment_f1", "onset_f1"] = "segment_f1"
    """`segment_f1` over segments of `resolution` seconds, or `onset_f1` with a tolerance of `collar` seconds.
    """
    average: Literal["micro", "macro"] = "micro"
    """`micro` counts all classes together, `macro` is the mean over the classes that occur."""
    resolution: PositiveFloat = 1.0
    """Length of a segment in seconds."""
    collar: PositiveFloat = 0.2
    """Tolerance of an onset in seconds."""
    keys: tuple[str, str, str] = ("onset", "offset", "label")
    """Names of onset, offset and class in an event of the column."""
    positive_weight: PositiveFloat = 1.0
    """Weight of active frames in the probe's binary cross-entropy."""


class TaskFile(Strict):
    """One task of a suite: a dataset card, its splits or folds, and the probes that are trained on its
    embeddings.

    Read by: probe.
    """

    dataset: str
    """Dataset card by name or path, with one clip per row."""
    kind: TaskKind = "clip"
    """`clip` (one class), `multilabel` (several), `frame` (events in time) or `retrieval` (texts)."""
    metric: Literal["accuracy", "uar", "macro_f1"] | None = None
    """Score of `kind: clip` in tables and averages: `accuracy`, `uar` (unweighted average recall, balanced
    accuracy) or `macro_f1`. The JSON holds all three. Default: accuracy.
    """
    domain: Domain | None
    """Domain of the average that the task belongs to; null for none."""
    column: str | None = None
    """Column with the answer. Default: `label`, `labels`, `events` or `text`, by kind."""
    separator: str = Field(";", min_length=1)
    """Text between the classes of `multilabel`, if they are stored as one text."""
    train: str = "train"
    """Split that trains the probes."""
    valid: str | None = None
    """Split that chooses the epoch under the protocol `xares`. Default: none; the test split chooses it."""
    test: str = "test"
    """Split that is scored."""
    split_column: str | None = None
    """Column whose values are the names of these splits, over all rows of the card; rows with another value are
    not used. Default: the splits of the card.
    """
    folds: str | tuple[str, ...] | None = None
    """Cross-validation in place of splits: a column whose values are the folds, or a list of splits that are the folds.
    The score is the mean over folds. Default: no folds.
    """
    weight: PositiveFloat | None = None
    """Weight in averages. Default: the number of test clips."""
    max_clips: PositiveInt | None = None
    """Largest number of clips of each split or fold; a random sample, the same for every model. Default: all clips."""
    probes: tuple[ProbeKind, ...] | None = Field(None, min_length=1)
    """Probes to train. Default: all three for `clip`, else `linear`."""
    private: bool = False
    """Leave the task out of the average over public tasks."""
    unseen: bool = False
    """No recipe trains on this dataset; averages over the trained and over the unseen tasks are then given separately.
    """
    frame: FrameFile = FrameFile()
    """Scoring of events in time."""
    epochs: PositiveInt = 10
    """Training epochs of frame and retrieval probes, and of every probe under the protocol `xares`."""
    batch: PositiveInt = 32
    """Batch size of the same probes, in clips."""
    crop: PositiveFloat | None = None
    """Length in seconds of the pieces into which clips are cut under the protocol `xares`. Default: clips stay whole.
    """
    encode: PositiveInt = 16
    """Clips that are padded and encoded together under the protocol `xares`."""

    @model_validator(mode="after")
    def fits(self) -> TaskFile:
        refused = sorted(set(self.kinds) - set(ALLOWED[self.kind]))
        if refused:
            raise ValueError(
                f"probes: {refused[0]} does not work for kind {self.kind}; give {', '.join(ALLOWED[self.kind])}"
            )
        if isinstance(self.folds, tuple) and len(self.folds) < 2:
            raise ValueError("folds: name at least two splits")
        if self.folds is not None and self.split_column is not None:
            raise ValueError("split_column: folds replace splits; leave one of the two out")
        if self.metric is not None and self.kind != "clip":
            advice = "frame.metric sets its score" if self.kind == "frame" else "leave it out"
            raise ValueError(f"metric: is for kind clip, and the kind is {self.kind}; {advice}")
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
    def score_metric(self) -> str:
        """What the score is: accuracy, an average over classes, mAP, an F1 or recall@1."""
        if self.kind == "frame":
            return self.frame.metric
        return self.metric or {"clip": "accuracy", "multilabel": "mAP", "retrieval": "recall@1"}[self.kind]


class SuiteFile(Strict):
    """A probe suite: tasks over dataset cards. Files inherit from another one by `base`.

    Read by: probe.
    """

    usual_names: ClassVar[UsualNames | None] = SUITE_NAMES
    suite: str
    """Name of the suite; equals the file name."""
    text_model: str | None = None
    """Folder or Hub name of the text model, for tasks of kind `retrieval`. Default: none."""
    tasks: dict[str, TaskFile | None] = Field(min_length=1)
    """Tasks by name; null removes a task of the `base`."""


@dataclass(frozen=True)
class Suite:
    """A suite with its cards.

    Args:
        name: None for labelled folders that were named one by one.
        text_model: the folder or Hub name of what reads texts for retrieval, or None.
    """

    name: str | None
    tasks: Mapping[str, tuple[TaskFile, DatasetCard]]
    text_model: str | None = None


def load_suite(name_or_path: str) -> Suite:
    """Read a suite and its cards, and check that they fit each other; no row is read.

    Raises:
        UserError: naming file and key: an unknown key, card or split, a retrieval task without a text model, two
            clips in a row.
    """
    path = find_file("suite", name_or_path)
    data = build(SuiteFile, read_layers(path, "suite"), str(path))
    require_name_of_file(path, "suite", data.suite)
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

    With folds or splits in a column these are all splits of the card, which by then must not overlap.
    """
    if isinstance(task.folds, tuple):
        return task.folds
    if task.folds is not None or task.split_column is not None:
        return tuple(card.splits)
    return list_splits(task)


def list_splits(task: TaskFile) -> tuple[str, ...]:
    """Return the splits that train, choose and test, each once."""
    return tuple(dict.fromkeys(s for s in (task.train, task.valid, task.test) if s is not None))
