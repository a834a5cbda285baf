"""Dataset cards: where the rows are, under which licence, and what their columns mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from uniaudio.config.files import expand_path, find_file
from uniaudio.config.layers import read_layers
from uniaudio.config.nearest import did_you_mean
from uniaudio.config.schema import Strict, build
from uniaudio.data.jinja import Condition, Text
from uniaudio.data.segment import NEMO, Segment
from uniaudio.errors import RowError, UserError

KINDS = ("hub", "parquet", "webdataset", "audiofolder", "jsonl", "csv", "kaldi")
SEVERAL = ("parquet", "webdataset")  # kinds that may name a list of places


class Load(Strict):
    """Exactly one kind of source, with what it needs; ``timeout`` in seconds is for reading over a network."""

    hub: str | None = None
    parquet: str | tuple[str, ...] | None = None
    webdataset: str | tuple[str, ...] | None = None
    audiofolder: str | None = None
    jsonl: str | None = None
    csv: str | None = None
    kaldi: str | None = None
    config: str | None = None
    revision: str | None = None
    timeout: float = Field(30.0, gt=0, allow_inf_nan=False)

    @field_validator(*SEVERAL, mode="before")
    @classmethod
    def several(cls, places: Any) -> Any:
        return tuple(places) if isinstance(places, list) else places

    @model_validator(mode="after")
    def one_kind(self) -> Load:
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
    """The stored split ``name`` and the rows of it to keep; ``rows`` states how many, where nobody can count them."""

    name: str = "train"
    keep: str | None = None
    rows: PositiveInt | None = None


class SegmentFile(Strict):
    """Columns with the times of a segment in seconds: where it begins (``start`` or ``offset``, which mean the same),
    and either its ``end`` or its ``duration``.
    """

    start: str | None = None
    offset: str | None = None
    end: str | None = None
    duration: str | None = None

    @model_validator(mode="after")
    def one_of_each(self) -> SegmentFile:
        if (self.start is None) == (self.offset is None) or (self.end is None) == (self.duration is None):
            raise ValueError("name one column as `start` (or `offset`) and one as `end` or `duration`")
        return self

    def segment(self) -> Segment:
        """Return the columns by their meaning."""
        return Segment(self.start or self.offset or "", self.end or self.duration or "", self.end is not None)


class CardFile(Strict):
    """The keys of a dataset card."""

    dataset: str
    load: Load
    license: str
    hours: PositiveFloat | None = None
    audio: tuple[str, ...] = Field(("audio",), min_length=1)
    segment: SegmentFile | Literal["none"] | None = None
    columns: dict[str, str] = Field(default_factory=dict)
    splits: dict[str, SplitFile] = Field(min_length=1)

    @field_validator("audio", mode="before")
    @classmethod
    def one_clip(cls, audio: Any) -> Any:
        return (audio,) if isinstance(audio, str) else tuple(audio) if isinstance(audio, list) else audio

    @model_validator(mode="after")
    def segment_of_one_clip(self) -> CardFile:
        if isinstance(self.segment, SegmentFile) and len(self.audio) > 1:
            raise ValueError("segment: the times of one clip, but `audio` names several")
        return self


@dataclass(frozen=True)
class Split:
    """A split by its stored name, a condition on rows, and their number where the card states it."""

    name: str
    keep: Condition | None
    rows: int | None = None


@dataclass(frozen=True)
class DatasetCard:
    """One dataset.

    Args:
        audio: the columns with clips, two of them for pairs.
        audio_texts: those of them that are made of other columns.
        used: the columns that templates take (None: all). No other is rendered or, where each is stored apart, read.
        segment: the columns with times, where a clip is a part of its recording.
        finds_segments: whether NeMo's pair of columns is taken for a segment without being named.
    """

    name: str
    load: Load
    license: str
    hours: float | None
    audio: tuple[str, ...]
    columns: Mapping[str, Text]
    splits: Mapping[str, Split]
    path: Path
    used: frozenset[str] | None = None
    audio_texts: Mapping[str, Text] = field(default_factory=dict)
    segment: Segment | None = None
    finds_segments: bool = True

    @property
    def time_columns(self) -> frozenset[str]:
        """The columns that say where a clip is and how long: a source reads them whatever the templates take."""
        named = (self.segment.start, self.segment.stop) if self.segment is not None else (NEMO.start,)
        return frozenset({NEMO.stop, *named})

    def locate_clips(self, row: Mapping[str, Any]) -> dict[str, str]:
        """Return the audio columns that the card makes of others, such as ``clips/{{ path }}``.

        Raises:
            RowError: when one cannot be made of this row.
        """
        return {name: text.render(row) for name, text in self.audio_texts.items()}

    def stored_columns(self, split: str) -> frozenset[str] | None:
        """Return the columns of the stored rows, without those of clips, that anything here uses; None for all."""
        if self.used is None:
            return None
        keep = self.split(split).keep
        texts = [self.columns[name] for name in self.used if name in self.columns] + list(
            self.audio_texts.values()
        )
        names = {name for name in self.used if name not in self.columns} | self.time_columns
        return frozenset(names.union(keep.names if keep is not None else (), *(text.names for text in texts)))

    def split(self, name: str) -> Split:
        """Return a split.

        Raises:
            UserError: listing the splits there are.
        """
        if name not in self.splits:
            raise UserError(
                f"{self.path}: no split '{name}'{did_you_mean(name, self.splits)}; "
                f"splits: {', '.join(self.splits)}"
            )
        return self.splits[name]

    def fields(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return the row's own columns, overlaid with the card's rendered ones.

        A column that cannot be rendered holds the error: it concerns those who use it, and no one else.
        """
        rendered: dict[str, Any] = {}
        for name, text in self.columns.items():
            if self.used is None or name in self.used:
                try:
                    rendered[name] = text.render(row)
                except RowError as problem:
                    rendered[name] = problem
        return {**row, **rendered}

    def keeps(self, row: Mapping[str, Any], split: str) -> bool:
        """Return whether a row of the stored split belongs to this split.

        Raises:
            UserError: when the rows have no column that the condition uses, or it cannot be worked out for this row.
        """
        keep = self.split(split).keep
        return keep is None or keep.holds(row)


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
    places = data.load.places
    if data.load.kind != "hub" or places[0].startswith("${"):
        where = f"{path}: load.{data.load.kind}"
        places = tuple(expand_path(place, path.parent, where) for place in places)
    columns = {name: Text(text, f"{path}: columns.{name}") for name, text in data.columns.items()}
    audio = dict(audio_columns(data.audio, f"{path}: audio"))
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
            )
            for name, split in data.splits.items()
        },
        path=path,
        segment=data.segment.segment() if isinstance(data.segment, SegmentFile) else None,
        finds_segments=data.segment is None and len(data.audio) == 1,
        audio_texts={
            name: made for name, text in audio.items() if (made := text or columns.get(name)) is not None
        },
    )


def audio_columns(audio: Sequence[str], where: str) -> list[tuple[str, Text | None]]:
    """Return the names of the audio columns and, where one is made of other columns, the text that makes it.

    Raises:
        UserError: when the syntax of a text is wrong.
    """
    places = [name if len(audio) > 1 else "" for name in (f"_{i}" for i in range(1, len(audio) + 1))]
    return [
        (f"audio{place}", Text(name, where)) if "{{" in name or "{%" in name else (name, None)
        for name, place in zip(audio, places, strict=True)
    ]
