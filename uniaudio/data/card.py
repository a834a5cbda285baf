"""Dataset cards: where the rows are, under which licence, and what their columns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from uniaudio.config.nearest import suggest_name
from uniaudio.config.overrides import read_layers
from uniaudio.config.path_variables import expand_path
from uniaudio.config.records import Strict, build
from uniaudio.config.search_paths import find_file
from uniaudio.data.conditions import KEY, Condition
from uniaudio.data.field_values import Classes, FirstOf
from uniaudio.data.jinja import Text
from uniaudio.data.labels import Label, LabelSet, read_label_sets
from uniaudio.data.long_clips import How, LongClips, LongClipsFile, expand_long_clips
from uniaudio.data.segment import MANIFEST_SEGMENTS, NEMO, Segment, SegmentColumns
from uniaudio.errors import RowError, UserError

KINDS = ("hub", "parquet", "webdataset", "audiofolder", "jsonl", "csv", "kaldi")
WITH_CLASSES = ("hub", "parquet")  # kinds whose columns may be numbers of classes with names
SEVERAL = ("parquet", "webdataset")  # kinds that may name a list of places
MANIFESTS = ("jsonl", "csv")  # kinds whose columns say which piece of a recording a row is


class Load(Strict):
    """Where the rows are: exactly one kind of source and its settings.

    Read by: data commands.
    """

    hub: str | None = None
    """A dataset on the Hugging Face Hub (`owner/name`) or a folder in its layout, streamed."""
    parquet: str | tuple[str, ...] | None = None
    """Parquet files: a file, folder, pattern or URL, or a list of them."""
    webdataset: str | tuple[str, ...] | None = None
    """WebDataset tars, compressed or not: a file, folder, pattern (`set_{0000..0127}.tar`) or URL, or a list of
    them.
    """
    audiofolder: str | None = None
    """A folder of clips, with or without a metadata file."""
    jsonl: str | None = None
    """A JSON Lines manifest, or a folder with one."""
    csv: str | None = None
    """A CSV or TSV table, or a folder with one."""
    kaldi: str | None = None
    """A Kaldi data directory with `wav.scp`."""
    config: str | None = None
    """Configuration (subset) of a Hub dataset. Default: its only or default one."""
    revision: str | None = None
    """Branch, tag or commit of a Hub dataset. Default: its main branch."""
    timeout: float = Field(30.0, gt=0, allow_inf_nan=False)
    """Seconds after which a connection that sends nothing is given up, for http(s) and the Hub."""

    @field_validator(*SEVERAL, mode="before")
    @classmethod
    def list_places(cls, places: Any) -> Any:
        return tuple(places) if isinstance(places, list) else places

    @model_validator(mode="after")
    def check_one_kind(self) -> Load:
        named = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(named) != 1:
            raise ValueError(f"name exactly one of {', '.join(KINDS)}, found {', '.join(named) or 'none'}")
        if not self.places or "" in self.places:
            raise ValueError(f"{named[0]}: name at least one place, and no empty one")
        if named[0] != "hub" and (self.config or self.revision):
            raise ValueError("config and revision belong to hub datasets only")
        return self

    @property
    def kind(self) -> str:
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def places(self) -> tuple[str, ...]:
        """Where the rows are; several kinds have only one place."""
        named = getattr(self, self.kind)
        return (named,) if isinstance(named, str) else named

    @property
    def location(self) -> str:
        """The places as one text: the place itself where there is only one."""
        return ", ".join(self.places)


class SplitFile(Strict):
    """A split: which stored split it is taken from and which rows of it.

    Read by: data commands.
    """

    name: str = "train"
    """Name of the stored split."""
    keep: str | None = None
    """Jinja expression on the columns of a row that selects rows, such as `fold != 5`. Default: all rows."""
    files: tuple[str, ...] = ()
    """Files of this split below the place of `load` (tars or parquet): patterns such as
    `ESC-50/train/fold_{1..4}.tar.gz`, or one of them. All of them are the split, whatever their names say.
    Default: by their names.
    """
    rows: PositiveInt | None = None
    """Number of rows, for sources that cannot count them; used by `mix: {by: rows}`. Default: counted."""
    hours: PositiveFloat | None = None
    """Hours of audio of this split. Default: `hours` of the card. Read by: recipe commands."""

    @field_validator("files", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def list_files(cls, files: Any) -> Any:
        return (files,) if isinstance(files, str) else tuple(files) if isinstance(files, list) else files


class FirstOfFile(Strict):
    """A column that is the first of several others that a row has.

    Read by: data commands.
    """

    first_of: tuple[str, ...] = Field(min_length=1)
    """Columns in order; a list, or a text such as `label;labels`. Numbers become text, lists stay lists."""
    each: bool = False
    """Whether a list there makes several rows of a row, one for each item: captions of a clip as samples of
    their own. At most one column of a card.
    """

    @field_validator("first_of", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def cut_text(cls, names: Any) -> Any:
        if isinstance(names, str):
            return tuple(name.strip() for name in names.split(";"))
        return tuple(names) if isinstance(names, list) else names


class SegmentFile(Strict):
    """Columns with the times of a segment in seconds, where clips are parts of longer recordings: a
    beginning, and an end or a duration.

    Read by: data commands.
    """

    start: str | None = None
    """Column with the beginning in seconds."""
    offset: str | None = None
    """The same as `start`, by the name that NeMo manifests use."""
    end: str | None = None
    """Column with the end in seconds."""
    duration: str | None = None
    """Column with the duration in seconds, in place of `end`."""

    @model_validator(mode="after")
    def check_one_of_each(self) -> SegmentFile:
        if (self.start is None) == (self.offset is None) or (self.end is None) == (self.duration is None):
            raise ValueError("name one column as `start` (or `offset`) and one as `end` or `duration`")
        return self

    def segment(self) -> Segment:
        """Return the columns by their meaning."""
        return Segment(self.start or self.offset or "", self.end or self.duration or "", self.end is not None)


class CardFile(Strict):
    """A dataset card: where the rows are, under which licence, and what their columns mean.

    Read by: data commands.
    """

    dataset: str
    """Name of the dataset; equals the file name."""
    load: Load
    """Where the rows are."""
    license: str
    """Licence of the data, as a short name. Read by: data pack, probe, export, report."""
    hours: PositiveFloat | None = None
    """Hours of audio of the split that is trained on, for `mix: {by: hours}`; other splits state theirs. Default: not
    known. Read by: recipe commands.
    """
    audio: tuple[str, ...] = Field(("audio",), min_length=1)
    """Column of the clip; a list of two columns for pairs; or a text that makes a path of other columns, such
    as `clips/{{ path }}`.
    """
    segment: SegmentFile | Literal["none"] | None = None
    """Columns with the times of a segment. `none` states that there are none. Default: NeMo's `offset` and
    `duration`, where a row has both; in manifests (`jsonl`, `csv`) also `start` with `end` or `duration`.
    """
    long_clips: LongClipsFile | None = None
    """What becomes of clips that are too long: `skip`, `crop` or `windows`, or a mapping with `how`, `seconds`
    and `hop`; a line of a recipe may say otherwise. Default: `skip` in training, `windows` in evaluation. Read by:
    train, eval, check, plan, data commands.
    """
    columns: dict[str, str | FirstOfFile] = Field(default_factory=dict)
    """Columns that are made of others: names to Jinja texts, or `{first_of: [a, b]}` for the first that a row
    has. Default: the stored columns alone.
    """
    labels: dict[str, LabelSet] = Field(default_factory=dict)
    """Closed sets of columns, as templates see them: names of columns to a list, or to a text file with one label
    a line, relative to the card. Of a column with lists, the labels of its items. Default: the names of classes,
    where the data hold them.
    """
    splits: dict[str, SplitFile] = Field(min_length=1)
    """Splits by name."""

    @field_validator("audio", mode="before", json_schema_input_type=str | tuple[str, ...])
    @classmethod
    def check_one_clip(cls, audio: Any) -> Any:
        return (audio,) if isinstance(audio, str) else tuple(audio) if isinstance(audio, list) else audio

    @field_validator("long_clips", mode="before", json_schema_input_type=How | LongClipsFile | None)
    @classmethod
    def expand_word(cls, value: Any) -> Any:
        return expand_long_clips(value)

    @model_validator(mode="after")
    def check_windows(self) -> CardFile:
        if self.long_clips is not None and self.long_clips.how == "windows" and len(self.audio) > 1:
            raise ValueError(
                "long_clips: windows are cut of one clip, but `audio` names several; take crop or skip"
            )
        return self

    @model_validator(mode="after")
    def check_columns(self) -> CardFile:
        each = [name for name, made in self.columns.items() if isinstance(made, FirstOfFile) and made.each]
        if len(each) > 1:
            raise ValueError(
                f"columns: `each` on {' and '.join(each)}, but one column alone can make rows of a row"
            )
        is_stated = any(split.files for split in self.splits.values())
        if is_stated and (self.load.kind not in SEVERAL or len(self.load.places) > 1):
            raise ValueError(f"splits: `files` need one place of {' or '.join(SEVERAL)} under `load`")
        return self

    @model_validator(mode="after")
    def check_segment(self) -> CardFile:
        if isinstance(self.segment, SegmentFile) and len(self.audio) > 1:
            raise ValueError("segment: the times of one clip, but `audio` names several")
        return self


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
    def is_local(self) -> bool:
        """Whether the rows of a dataset of the Hub's kind lie in a folder of this machine."""
        return Path(self.load.location).is_dir()

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
        name = self.each
        made = self.columns.get(name) if name is not None else None
        if name is None or not isinstance(made, FirstOf):
            return [columns]
        try:
            return [{**columns, name: item} for item in made.list_items(columns)] or [columns]
        except RowError:
            return [columns]

    def locate_clips(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return the audio columns that the card makes of others, such as ``clips/{{ path }}``.

        Raises:
            RowError: when one cannot be made of this row.
        """
        return {name: text.render(row) for name, text in self.audio_texts.items()}

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

    def find_labels(self, column: str, classes: Mapping[str, Classes]) -> tuple[Any, ...] | None:
        """Return the closed set of a column as templates see it; None where nothing states one.

        A column that the card makes of one column of classes has what it makes of their names.

        Args:
            classes: of the stored columns, see ``Source.classes``.
        """
        if column in self.labels:
            return self.labels[column]
        text = self.columns.get(column)
        if text is None:
            return classes[column].values if column in classes else None
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

    def is_in_split(self, row: Mapping[str, Any], split: str) -> bool:
        """Return whether a row of the stored split belongs to this split.

        Raises:
            UserError: when the rows have no column that the condition uses, or it cannot be worked out for this row.
        """
        keep = self.split(split).keep
        return keep is None or keep.is_true(row)


def load_card(name_or_path: str, near: Path | None = None) -> DatasetCard:
    """Read and check a dataset card.

    Raises:
        UserError: naming file and key.
    """
    path = find_file("dataset", name_or_path, near)
    data = build(CardFile, read_layers(path, "dataset"), str(path))
    if data.dataset != path.stem:
        raise UserError(
            f"{path}: dataset is '{data.dataset}', but the file is {path.stem}.yaml; make them equal"
        )
    return make_card(data, path)


def make_card(data: CardFile, path: Path) -> DatasetCard:
    """Return what the content of a card file says.

    Args:
        path: of the file, which paths are relative to and messages name.

    Raises:
        UserError: naming the key.
    """
    places = data.load.places
    if data.load.kind != "hub" or places[0].startswith("${"):
        where = f"{path}: load.{data.load.kind}"
        places = tuple(expand_path(place, path.parent, where) for place in places)
    columns = {name: make_column(made, f"{path}: columns.{name}") for name, made in data.columns.items()}
    audio = dict(parse_audio_columns(data.audio, f"{path}: audio"))
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
    return Text(made, where) if isinstance(made, str) else FirstOf(made.first_of, made.each, where)


def parse_audio_columns(audio: Sequence[str], where: str) -> list[tuple[str, Text | None]]:
    """Return the names of the audio columns and, where one is made of other columns, the text that makes it.

    Raises:
        UserError: when the syntax of a text is wrong.
    """
    places = [name if len(audio) > 1 else "" for name in (f"_{i}" for i in range(1, len(audio) + 1))]
    return [
        (f"audio{place}", Text(name, where)) if "{{" in name or "{%" in name else (name, None)
        for name, place in zip(audio, places, strict=True)
    ]
