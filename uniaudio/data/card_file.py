"""The YAML of a dataset card: its keys, and which of them go together."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from uniaudio.config.records import OneOrMore, Strict
from uniaudio.config.usual_names import CARD_NAMES, UsualNames
from uniaudio.data.labels import LabelSet
from uniaudio.data.long_clips import LongClipsSetting
from uniaudio.data.segment import Segment

KINDS = ("hub", "parquet", "webdataset", "audiofolder", "jsonl", "csv", "kaldi")
WITH_CLASSES = ("hub", "parquet")  # kinds whose columns may be numbers of classes with names
SEVERAL = ("parquet", "webdataset")  # kinds that may name a list of places
MANIFESTS = ("jsonl", "csv")  # kinds whose columns say which piece of a recording a row is


class Load(Strict):
    """Where the rows are: exactly one kind of source and its settings.

    Read by: data commands.
    """

    hub: str | None = None
    """A dataset on the Hugging Face Hub (`owner/name`) or a folder in its layout, streamed; a path relative to the card
    begins with `./` or `../`.
    """
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
    """Seconds after which a connection that sends nothing is closed, for http(s), S3 and the Hub."""

    @model_validator(mode="after")
    def check_one_kind(self) -> Load:
        named = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(named) != 1:
            raise ValueError(f"name exactly one of {', '.join(KINDS)}, found {', '.join(named) or 'none'}")
        if not self.places or "" in self.places:
            raise ValueError(f"{named[0]}: name at least one place; none may be empty")
        if named[0] != "hub" and (self.config or self.revision):
            raise ValueError("config and revision are only for hub datasets")
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
    files: OneOrMore = ()
    """Files of this split below the place of `load` (tars or parquet): patterns such as
    `ESC-50/train/fold_{1..4}.tar.gz`, or one of them. All of them belong to the split, whatever their names are.
    Default: files are chosen by name.
    """
    rows: PositiveInt | None = None
    """Number of rows, for sources that cannot count them; used by `mix: {by: rows}`. Default: counted."""
    hours: PositiveFloat | None = None
    """Hours of audio of this split. Default: `hours` of the card. Read by: recipe commands."""


class FirstOfFile(Strict):
    """A column that is the first of several others that a row has.

    Read by: data commands.
    """

    first_of: tuple[str, ...] = Field(min_length=1)
    """Columns in order; a list, or a text such as `label;labels`. Numbers become text, lists stay lists."""
    each: bool = False
    """Whether a list makes several rows, one per item, such as the captions of a clip. Possible for one column of a
    card.
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
    """The same as `start`, under the name used in NeMo manifests."""
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

    usual_names: ClassVar[UsualNames | None] = CARD_NAMES
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
    audio: OneOrMore = Field(("audio",), min_length=1)
    """Column of the clip; a list of two columns for pairs; or text that computes a path from other columns, such as
    `clips/{{ path }}`.
    """
    segment: SegmentFile | Literal["none"] | None = None
    """Columns with the times of a segment. `none` states that there are none. Default: NeMo's `offset` and `duration`,
    if a row has both; in manifests (`jsonl`, `csv`) also `start` with `end` or `duration`.
    """
    long_clips: LongClipsSetting = None
    """What to do with clips that are too long: `skip`, `crop` or `windows`, or a mapping with `how`, `seconds` and
    `hop`; an entry of a recipe overrides it. Default: `skip` in training, `windows` in evaluation. Read by: train,
    eval, check, plan, data commands.
    """
    columns: dict[str, str | FirstOfFile] = Field(default_factory=dict)
    """Columns computed from others: names mapped to Jinja texts, or `{first_of: [a, b]}` for the first that a row has.
    Default: only the stored columns.
    """
    labels: dict[str, LabelSet] = Field(default_factory=dict)
    """Closed sets of columns, as templates see them: names of columns mapped to a list, or to a text file with one
    label per line, relative to the card. For a column of lists, the labels of the items. Default: the class names, if
    the data contain them.
    """
    splits: dict[str, SplitFile] = Field(min_length=1)
    """Splits by name."""

    @model_validator(mode="after")
    def check_what_goes_together(self) -> CardFile:
        if self.long_clips is not None and self.long_clips.how == "windows" and len(self.audio) > 1:
            raise ValueError(
                "long_clips: only a single clip can be cut into windows, but `audio` names "
                "several; use crop or skip"
            )
        each = [name for name, made in self.columns.items() if isinstance(made, FirstOfFile) and made.each]
        if len(each) > 1:
            raise ValueError(
                f"columns: `each` on {' and '.join(each)}, but only one column can turn a row into several"
            )
        is_stated = any(split.files for split in self.splits.values())
        if is_stated and (self.load.kind not in SEVERAL or len(self.load.places) > 1):
            raise ValueError(
                f"splits: `files` need a single place of kind {' or '.join(SEVERAL)} under `load`"
            )
        if isinstance(self.segment, SegmentFile) and len(self.audio) > 1:
            raise ValueError("segment: gives the times of one clip, but `audio` names several")
        return self
