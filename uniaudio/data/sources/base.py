"""Rows of one split: by index where the source knows them all, else shard by shard."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import math
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.audio import decode
from uniaudio.data.card import DatasetCard
from uniaudio.data.clip_files import probe_seconds
from uniaudio.data.conditions import KEY
from uniaudio.data.encoded_audio import EncodedAudio, FilePart
from uniaudio.data.field_values import Classes
from uniaudio.data.samples import encode_samples
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.data.sources.paths import is_remote
from uniaudio.errors import RowError, UserError, convert_to_row_error, convert_to_user_error, escape_text

UNREAD = b""  # a clip in a row that is only read for what it says
IN_ARCHIVE = "::"  # between the path of a tar and the name of a file in it


@dataclass(frozen=True)
class AudioRef:
    """A clip that is not decoded yet.

    Args:
        source: a path, a part of a file, or encoded bytes. name: how messages call it.
        seconds: its length, where the row states it.
        span: (start, end) in seconds, where the clip is a part of a longer recording.
        suffix: of the file's name, where ``source`` is no path.
    """

    source: EncodedAudio
    name: str
    seconds: float | None = None
    span: tuple[float, float] | None = None
    suffix: str = ""

    def read_seconds(self) -> float:
        """Return the length in seconds, from the row or from the audio header.

        Raises:
            RowError: when the header cannot be read.
        """
        if self.span is not None:
            return self.span[1] - self.span[0]
        return (
            self.seconds if self.seconds is not None else probe_seconds(self.source, self.name, self.suffix)
        )

    def decode(self, max_seconds: float, notices: list[str] | None = None) -> NDArray[np.int16]:
        """Decode to ``[S]`` int16 at 16 kHz, as ``audio.decode`` says.

        Args:
            notices: gets what is odd about the clip, one short text for each kind.

        Raises:
            RowError: when it cannot be used.
        """
        return decode(self.source, max_seconds, self.name, self.span, notices, self.suffix)


@dataclass(frozen=True)
class Row:
    """One row: ``key`` names it within its split; ``columns`` are plain values; one ``AudioRef`` per clip.

    Args:
        window: (start, end) in seconds of the clip that the row is a window of, see ``long_clips.py``.
    """

    key: str
    columns: Mapping[str, Any]
    audio: tuple[AudioRef, ...]
    window: tuple[float, float] | None = None


class Place(NamedTuple):
    """A position in a shard: ``row`` rows lie before it; ``offset`` is where the source itself goes on reading."""

    row: int = 0
    offset: int = 0


def hash_values(facts: Sequence[Any]) -> str:
    """Return a short hash of plain values."""
    return hashlib.blake2b(json.dumps(facts, default=str).encode(), digest_size=16).hexdigest()


class BrokenShardError(Exception):
    """The rest of a shard cannot be read, now or later; the message says why.

    Args:
        lost: rows of the shard that are not read, as far as the source can estimate them. total: rows of all shards.
        is_cut: whether the file ends too early, so that what is lost is not even there.
    """

    def __init__(
        self, message: str, lost: int | None = None, total: float | None = None, is_cut: bool = False
    ) -> None:
        super().__init__(message)
        self.lost, self.total, self.is_cut = lost, total, is_cut


class IndexedSource(ABC):
    """Rows that can be had in any order at no cost: manifests and folders of audio files."""

    size: int

    @cached_property
    def left_out(self) -> Counter[str]:
        """What lies in the place and is no row, counted by reason."""
        return Counter()

    @cached_property
    def classes(self) -> Mapping[str, Classes]:
        """The classes of the columns that hold numbers with names."""
        return {}

    @abstractmethod
    def row(self, index: int) -> Row:
        """Return a row by its index.

        Raises:
            RowError: when it cannot be used.
        """

    def fingerprint(self, columns: Collection[str]) -> str:
        """Return a text that is another one when the rows, their order or what they say are others.

        Args:
            columns: those that are used; others may change.
        """
        return str(self.size)

    def read_row_or_error(self, index: int) -> Row | RowError:
        """Return a row by its index, or why it cannot be used, whatever was raised."""
        row = read_row_or_error(lambda: self.row(index), f"row {index}")
        assert row is not None
        return row

    def rows(self) -> Iterator[Row | RowError]:
        """Yield all rows in order; a row that cannot be used comes as its error."""
        return map(self.read_row_or_error, range(self.size))

    def shard_text_rows(self, shard: int) -> Iterator[Row | RowError]:
        """Yield all rows: their clips are files, of which nothing is read here."""
        return self.rows()


class ShardedSource(ABC):
    """Rows that are read one after another: archives, tables with embedded audio, datasets on the Hub.

    Attributes:
        shards: their names, in an order that does not change from run to run. Each can be read alone.
        size: number of rows that belong to the split, or None where only reading all would tell.
    """

    shards: tuple[str, ...]
    size: int | None = None
    divided_by: DatasetCard | None = None  # whose column with ``each`` makes several rows of a stored one

    @cached_property
    def left_out(self) -> Counter[str]:
        """What lies in the place and is no shard, counted by reason."""
        return Counter()

    @cached_property
    def classes(self) -> Mapping[str, Classes]:
        """The classes of the columns that hold numbers with names."""
        return {}

    def fingerprint(self, columns: Collection[str]) -> str:
        """Return a text that is another one when the shards are others, as far as is known unread.

        Args:
            columns: those that are used.
        """
        return hash_values([*self.shards])

    @abstractmethod
    def read(self, shard: int, place: Place) -> Iterator[tuple[Row | RowError | None, Place]]:
        """Yield the rows of a shard from ``place`` on, each with the place behind it.

        A row that the split does not keep comes as None, one that cannot be used as its error: both count in
        ``Place.row``, so a position means the same whatever the card keeps.

        Raises:
            BrokenShardError: when the rest cannot be read, now or later.
            OSError: when it may be worth to try again.
        """

    def divide_row(self, row: Row | RowError | None) -> list[Row | RowError | None]:
        """Return the rows that a stored one becomes; places and shares of shards are those of stored rows."""
        if self.divided_by is None or not isinstance(row, Row):
            return [row]
        return [
            replace(row, key=f"{row.key}#{number}" if number > 1 else row.key, columns=columns)
            for number, columns in enumerate(self.divided_by.divide_columns(row.columns), 1)
        ]

    def shard_rows(self, shard: int) -> Iterator[Row | RowError | None]:
        """Yield the rows of a shard: what the split does not keep as None, and what breaks as an error at its end."""
        try:
            with convert_to_row_error("broken shard", self.shards[shard], self.shards[shard]):
                for row, _ in self.read(shard, Place()):
                    yield from self.divide_row(row)
        except RowError as problem:
            yield problem

    def rows(self) -> Iterator[Row | RowError]:
        """Yield all rows in the order of the shards; a row that cannot be used comes as its error."""
        for shard in range(len(self.shards)):
            yield from (row for row in self.shard_rows(shard) if row is not None)

    def shard_text_rows(self, shard: int) -> Iterator[Row | RowError]:
        """Yield the rows of a shard for what they say: sources that can, leave the bytes of clips unread."""
        return (row for row in self.shard_rows(shard) if row is not None)


Source = IndexedSource | ShardedSource

# Kind of a card -> module and class, or function that chooses one. Imported when asked for: they need this file, and
# some of them large libraries.
KINDS = {
    "hub": ("hub", "open_hub_source"),
    "parquet": ("parquet", "ParquetSource"),
    "webdataset": ("webdataset", "WebDatasetSource"),
    "audiofolder": ("audiofolder", "AudioFolderSource"),
    "jsonl": ("manifest", "JsonlSource"),
    "csv": ("manifest", "CsvSource"),
    "kaldi": ("kaldi", "KaldiSource"),
}


def parse_audio(
    value: Any, row: Mapping[str, Any], folder: Path, name: str, timeout: float = 30.0
) -> AudioRef:
    """Understand an audio column.

    It may be a path or URL, a member of an archive (``clips.tar::a/b.flac``), a part of a file (``{"path": ...,
    "offset": ..., "size": ...}``), bytes, the Hub's ``{"bytes": ..., "path": ...}``, or samples as
    ``{"array": ..., "sampling_rate": ...}``.

    Args:
        timeout: seconds after which a connection that sends nothing is given up.

    Raises:
        RowError: when the column holds none of them, or the error why it has no value.
    """
    if isinstance(value, RowError):
        raise value.copy()
    length = parse_seconds(row.get("duration"))
    if isinstance(value, Mapping) and value.get("array") is not None and value.get("bytes") is None:
        return AudioRef(encode_samples(value["array"], value.get("sampling_rate"), name), name, length)
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        if not isinstance(value["bytes"], bytes | memoryview):
            raise RowError("broken metadata", f"{name}: `bytes` holds {type(value['bytes']).__name__}")
        path = value.get("path")
        return AudioRef(
            value["bytes"], name, length, suffix=Path(path).suffix if isinstance(path, str) else ""
        )
    if isinstance(value, bytes | memoryview):
        return AudioRef(value, name, length)
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, str) or not path:
        raise RowError("missing column", f"{name}: no audio path or bytes")
    if isinstance(value, Mapping) and "offset" in value:
        try:
            part = FilePart(folder / path, int(value["offset"]), int(value["size"]))
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            raise RowError("broken metadata", f"{name}: offset and size must be whole numbers") from problem
        seconds = parse_seconds(value["seconds"]) if "seconds" in value else length
        return AudioRef(part, name, seconds, suffix=part.path.suffix)
    if is_remote(path):
        from uniaudio.data.sources.url_clips import UrlClip  # which needs this file

        return AudioRef(UrlClip(path, timeout), name, length, suffix=Path(path.partition("?")[0]).suffix)
    archive, inside, member = path.partition(IN_ARCHIVE)
    if inside:
        return AudioRef(
            find_archive_member(folder / archive, member), name, length, suffix=Path(member).suffix
        )
    return AudioRef(folder / path, name, length)


def parse_seconds(value: Any) -> float | None:
    """Return a stated length in seconds, or None for what is no positive number: then the audio itself tells."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    with contextlib.suppress(OverflowError):
        seconds = float(value)
        return seconds if 0 < seconds < math.inf else None
    return None


@lru_cache(maxsize=64)
def list_archive_members(archive: Path) -> Mapping[str, FilePart]:
    """Return where the files of a tar lie, by their names: those before the damage, where there is some."""
    members_by_name: dict[str, FilePart] = {}
    with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(archive, "r:") as tar:
        for member in tar:
            if member.isfile():
                members_by_name[member.name] = FilePart(archive, member.offset_data, member.size)
    return members_by_name


def find_archive_member(archive: Path, member: str) -> FilePart:
    """Return where a file of a tar lies; nothing is unpacked.

    Raises:
        RowError: when there is no such archive or file in it.
    """
    if not archive.is_file():
        raise RowError("missing file", str(archive))
    members = list_archive_members(archive)
    if member not in members:
        raise RowError("missing file", f"{archive} holds no {member} (or is damaged before it)")
    return members[member]


def make_row(
    card: DatasetCard,
    key: str,
    columns: Mapping[str, Any],
    stored: Mapping[str, Any],
    folder: Path,
    fetch: Callable[[Any], Any] = lambda clip: clip,
) -> Row:
    """Put a row together from its columns and the clips that the card finds in them.

    Args:
        columns: without clips. stored: those with clips, too. folder: that paths are relative to.
        fetch: what a source makes of an audio column before it is understood.

    Raises:
        RowError: see ``parse_row_audio``.
    """
    clips = {**stored, **card.locate_clips(stored)}
    clips |= {name: fetch(clips[name]) for name in card.audio if name in clips}
    return Row(key, columns, parse_row_audio(clips, card, folder, key))


def parse_row_audio(
    columns: Mapping[str, Any], card: DatasetCard, folder: Path, key: str
) -> tuple[AudioRef, ...]:
    """Return one reference per audio column of a row.

    Raises:
        RowError: when the row has no such column, the column holds no clip, or its segment is none.
    """
    for name in card.audio:
        if name not in columns:
            raise RowError("missing column", explain_missing_audio(f"row {key}", name, columns))
    stated = columns if len(card.audio) == 1 else {}  # `duration` speaks of one clip
    refs = (
        parse_audio(columns[name], stated, folder, f"{key}.{name}", card.load.timeout) for name in card.audio
    )
    return tuple(apply_segment(ref, card, columns) for ref in refs)


def apply_segment(ref: AudioRef, card: DatasetCard, columns: Mapping[str, Any]) -> AudioRef:
    """Return a reference to the segment of the recording that a row names, where it names one.

    Raises:
        RowError: when its times cannot be used.
    """
    span = card.segment.read_span(columns, ref.name)
    return ref if span is None else replace(ref, span=span)


def explain_missing_audio(what: str, name: str, columns: Iterable[Any]) -> str:
    """Return the sentence that a row, or none of the rows, has an audio column that the card names."""
    return f"{what} has no audio column '{name}'; columns: {', '.join(map(str, columns))}"


def read_row_or_error(make: Callable[[], Row | RowError | None], key: str) -> Row | RowError | None:
    """Return what a source makes of one row, or why it cannot be used, whatever was raised.

    Args:
        key: of the row, for the errors that are returned.
    """
    try:
        with convert_to_row_error("unreadable row", key, key):
            row = make()
            if isinstance(row, RowError):
                raise row
            return row
    except RowError as problem:
        return problem


def is_row_in_split(card: DatasetCard, columns: Mapping[str, Any], split: str, key: str) -> bool:
    """Return whether a row of the stored split belongs to a split of the card.

    Args:
        key: of the row, which a condition may name as a column.

    Raises:
        RowError: when the values of this row are such that it cannot be told.
        UserError: when the row lacks a column that the condition needs.
    """
    keep = card.split(split).keep
    if keep is not None and KEY in keep.names:
        columns = {KEY: key, **columns}
    try:
        return card.is_in_split(columns, split)
    except UserError as problem:
        if keep is None or not keep.names <= set(columns):
            raise
        raise RowError("broken metadata", str(problem)) from problem


OPENED: ContextVar[dict[tuple[Any, ...], Source] | None] = ContextVar("opened_sources", default=None)


@contextmanager
def keep_sources_open() -> Iterator[None]:
    """Open every split once inside, for commands that look at the same rows for several reasons."""
    token = OPENED.set({})
    try:
        yield
    finally:
        OPENED.reset(token)


def open_source(card: DatasetCard, split: str) -> Source:
    """Open the rows that belong to a split of a card, or return them where they are open (``keep_sources_open``).

    Raises:
        UserError: when the place does not exist, cannot be read, or keeps no rows.
    """
    opened, key = OPENED.get(), (card.path, split, card.used)
    if opened is None:
        return open_new_source(card, split)
    if key not in opened:
        opened[key] = open_new_source(card, split)
    return opened[key]


def open_new_source(card: DatasetCard, split: str) -> Source:
    """Open the rows that belong to a split of a card, as ``open_source``."""
    module, name = KINDS[card.load.kind]
    kind: Callable[[DatasetCard, str], Source] = getattr(
        import_module(f"uniaudio.data.sources.{module}"), name
    )
    collects = gc.isenabled()
    gc.disable()  # millions of small objects are made and none is garbage: looking for it would double the time
    where = f"{card.path}: load.{card.load.kind}: {escape_text(card.load.location)} cannot be opened"
    try:
        with convert_to_user_error(where):
            source = kind(card, split)
    finally:
        if collects:
            gc.enable()
    if isinstance(source, ShardedSource) and card.each is not None:
        source.divided_by, source.size = card, None  # how many rows there are, only reading all of them tells
    if source.size == 0:
        passed_over = describe_left_out(source.left_out)
        raise UserError(
            f"{card.path}: split '{split}' keeps no rows of {card.load.location}"
            f"{f'; passed over: {passed_over}' if passed_over else ''}"
        )
    return source
