"""Dataset cards: where the rows are, under which licence, and what their columns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniaudio.config.base_files import read_layers
from uniaudio.config.nearest import suggest_name
from uniaudio.config.path_variables import expand_path
from uniaudio.config.records import build
from uniaudio.config.search_paths import find_file, require_name_of_file
from uniaudio.data.card_file import MANIFESTS, WITH_CLASSES, CardFile, FirstOfFile, Load, SegmentFile
from uniaudio.data.column_names import suggest_first_of
from uniaudio.data.field_values import Classes, FirstOf
from uniaudio.data.jinja import Text
from uniaudio.data.keep_conditions import KEY, Condition
from uniaudio.data.labels import Label, read_label_sets
from uniaudio.data.long_clips import LongClips
from uniaudio.data.segment import MANIFEST_SEGMENTS, NEMO, SegmentColumns
from uniaudio.errors import RowError, UserError


@dataclass(frozen=True)
class Split:
    """A split by its stored name, a condition on rows, and their number, files and hours where the card states them."""

    name: str
    keep: Condition | None
    rows: int | None = None
    files: tuple[str, ...] = ()
    hours: float | None = None


@dataclass(frozen=True)
class DatasetCard:
    """One dataset.

    Args:
        audio: the columns with clips, two of them for pairs.
        audio_texts: those of them that are made of other columns.
        used: the columns that templates take (None: all). No other is rendered or, where each is stored apart, read.
        segment: the columns with times, where a clip is a part of its recording.
        long_clips: what becomes of long clips, where the card states it. labels: the closed sets of columns.
    """

    name: str
    load: Load
    license: str
    hours: float | None
    audio: tuple[str, ...]
    columns: Mapping[str, Text | FirstOf]
    splits: Mapping[str, Split]
    path: Path
    used: frozenset[str] | None = None
    audio_texts: Mapping[str, Text | FirstOf] = field(default_factory=dict)
    segment: SegmentColumns = field(default_factory=SegmentColumns)
    labels: Mapping[str, tuple[Label, ...]] = field(default_factory=dict)
    long_clips: LongClips | None = None

    @property
    def stored_audio(self) -> tuple[str, ...]:
        """The columns with clips that are stored, not made of others."""
        return tuple(name for name in self.audio if name not in self.audio_texts)

    @property
    def is_local(self) -> bool:
        """Whether the rows of a dataset of the Hub's kind lie in a folder of this machine."""
        return Path(self.load.location).is_dir()

    @property
    def may_name_classes(self) -> bool:
        """Whether columns may be numbers of classes whose names the data state."""
        return self.load.kind in WITH_CLASSES

    @property
    def time_columns(self) -> frozenset[str]:
        """The columns that say where a clip is and how long: a source reads them whatever the templates take."""
        return self.segment.names | {NEMO.stop}

    @property
    def each(self) -> str | None:
        """The column whose items are rows of their own, where the card has one."""
        return next(
            (name for name, made in self.columns.items() if isinstance(made, FirstOf) and made.each), None
        )

    def divide_columns(self, columns: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        """Return the columns of the rows that a row becomes, one for each item of the column with ``each``.

        A row without a value there stays as it is, so that it is skipped with the reason.
        """
        for name, made in self.columns.items():
            if isinstance(made, FirstOf) and made.each:
                with suppress(RowError):
                    return [{**columns, name: item} for item in made.list_items(columns)] or [columns]
        return [columns]

    def list_columns_to_read(self, split: str, there: Set[str]) -> frozenset[str] | None:
        """Return the columns, without those of clips, that anything here uses; None for all that are there.

        Where one of them is missing all are read, so that the message about it can name them.
        """
        if self.used is None:
            return None
        keep = self.split(split).keep
        texts = [self.columns[name] for name in self.used if name in self.columns] + list(
            self.audio_texts.values()
        )
        names = {name for name in (*self.used, *self.labels) if name not in self.columns} | self.time_columns
        used = names.union(
            keep.names - {KEY} if keep is not None else (),
            *(text.names & there if isinstance(text, FirstOf) else text.names for text in texts),
        )
        return frozenset(used) if used - self.time_columns <= there else None

    def find_labels(
        self, column: str, classes: Mapping[str, Classes], may_be_several: bool = True
    ) -> tuple[Any, ...] | None:
        """Return the closed set of a column as templates see it; None where nothing states one.

        A column that the card makes of one column of classes has what it makes of their names.

        Args:
            classes: of the stored columns, see ``Source.classes``.
            may_be_several: whether an answer may name several labels; else a column that puts lists of them together
                has no closed set.
        """
        if column in self.labels:
            return self.labels[column]
        text = self.columns.get(column)
        if text is None:
            stated = classes.get(column)
            return None if stated is None or (stated.in_lists and not may_be_several) else stated.values
        known = text.names & classes.keys()
        stored = next(iter(known), "")
        if isinstance(text, FirstOf):
            return classes[stored].values if len(known) == 1 else None
        if not known or len(text.names) > 1:
            return None
        made: dict[str, None] = {}
        for value in classes[stored].values:
            with suppress(RowError):  # so the rows of this class cannot be used either
                made[text.render({stored: [value] if classes[stored].in_lists else value})] = None
        if classes[stored].in_lists and not may_be_several:
            with suppress(RowError):
                if text.render({stored: list(classes[stored].values[:2])}) not in made:
                    return None
        return tuple(made) or None

    def split(self, name: str) -> Split:
        """Return a split.

        Raises:
            UserError: listing the splits there are.
        """
        if name not in self.splits:
            raise UserError(
                f"{self.path}: no split '{name}'{suggest_name(name, self.splits)}; "
                f"splits: {', '.join(self.splits)}"
            )
        return self.splits[name]

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row's own columns, overlaid with the card's rendered ones.

        A column that cannot be rendered holds the error: it concerns those who use it, and no one else.
        """
        rendered: dict[str, Any] = {}
        for name, text in self.columns.items():
            if name == self.each and name in row:
                continue  # its item, since the row was divided
            if self.used is None or name in self.used:
                try:
                    rendered[name] = text.render(row)
                except RowError as problem:
                    rendered[name] = problem
        return {**row, **rendered}


def load_card(name_or_path: str, near: Path | None = None) -> DatasetCard:
    """Read and check a dataset card.

    Raises:
        UserError: naming file and key.
    """
    path = find_file("dataset", name_or_path, near)
    data = build(CardFile, read_layers(path, "dataset"), str(path))
    require_name_of_file(path, "dataset", data.dataset)
    return make_card(data, path)


def make_card(data: CardFile, path: Path) -> DatasetCard:
    """Return what the content of a card file says.

    Args:
        path: of the file, which paths are relative to and messages name.

    Raises:
        UserError: naming the key.
    """
    places = data.load.places
    # a name on the Hub may be that of a folder beside the card, so there a folder shows that it is one
    if data.load.kind != "hub" or places[0].startswith(("${", ".", "~", "/")):
        where = f"{path}: load.{data.load.kind}"
        places = tuple(expand_path(place, path.parent, where) for place in places)
    columns = {name: make_column(made, f"{path}: columns.{name}") for name, made in data.columns.items()}
    audio = parse_audio_columns(data.audio, f"{path}: audio")
    return DatasetCard(
        name=data.dataset,
        load=data.load.model_copy(update={data.load.kind: places if len(places) > 1 else places[0]}),
        license=data.license,
        hours=data.hours,
        audio=tuple(audio),
        columns=columns,
        splits={
            name: Split(
                split.name,
                Condition(split.keep, f"{path}: splits.{name}.keep") if split.keep is not None else None,
                split.rows,
                split.files,
                split.hours or data.hours,
            )
            for name, split in data.splits.items()
        },
        path=path,
        segment=choose_segment_columns(data),
        labels=read_label_sets(data.labels, path.parent, f"{path}: labels"),
        long_clips=LongClips.of(data.long_clips) if data.long_clips is not None else None,
        audio_texts={
            name: made for name, text in audio.items() if (made := text or columns.get(name)) is not None
        },
    )


def choose_segment_columns(data: CardFile) -> SegmentColumns:
    """Return the columns with times that a card names, or those that count where it says nothing."""
    if isinstance(data.segment, SegmentFile):
        return SegmentColumns(data.segment.segment())
    if data.segment == "none" or len(data.audio) > 1:
        return SegmentColumns()
    is_manifest = data.load.kind in MANIFESTS
    return SegmentColumns(None, MANIFEST_SEGMENTS if is_manifest else (NEMO,), is_manifest)


def make_column(made: str | FirstOfFile, where: str) -> Text | FirstOf:
    """Return what makes a column of others.

    Raises:
        UserError: when the syntax of a text is wrong.
    """
    if not isinstance(made, str):
        return FirstOf(made.first_of, made.each, where)
    try:
        return Text(made, where)
    except UserError as problem:
        raise UserError(f"{problem}{suggest_first_of(made)}") from problem


def parse_audio_columns(audio: Sequence[str], where: str) -> dict[str, Text | None]:
    """Return the names of the audio columns and, where one is made of other columns, the text that makes it.

    Raises:
        UserError: when the syntax of a text is wrong.
    """
    columns: dict[str, Text | None] = {}
    for number, stated in enumerate(audio, 1):
        if "{{" in stated or "{%" in stated:
            columns["audio" if len(audio) == 1 else f"audio_{number}"] = Text(stated, where)
        else:
            columns[stated] = None
    return columns
