"""Rows of one split: by index where the source knows them all, else shard by shard."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.audio import decode
from uniaudio.data.audio_files import probe_seconds
from uniaudio.data.card import DatasetCard
from uniaudio.data.encoded_audio import EncodedAudio
from uniaudio.data.field_values import Classes
from uniaudio.data.keep_conditions import KEY
from uniaudio.errors import RowError, UserError, convert_to_row_error
from uniaudio.types import SAMPLE_RATE

BROKEN_SHARD = "broken shard"  # the reason of a row error that stands for the rest of a shard
UNREAD = b""  # a clip in a row that is only read for what it says

Result = TypeVar("Result")
ClipSamples = NDArray[np.int16]  # samples [S] at 16 kHz
TOLERANCE, TOLERANCE_SHARE = 0.1, 0.02  # seconds, and share of a stated length, that it may be wrong by


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


class RowSource(ABC):
    """What sources of rows have in common."""

    @cached_property
    def left_out(self) -> Counter[str]:
        """What lies in the place and is no row and no shard, counted by reason."""
        return Counter()

    @cached_property
    def classes(self) -> Mapping[str, Classes]:
        """The classes of the columns that hold numbers with names."""
        return {}

    @abstractmethod
    def rows(self) -> Iterator[Row | RowError]:
        """Yield all rows in order; a row that cannot be used comes as its error."""


class IndexedSource(RowSource):
    """Rows that can be had in any order at no cost: manifests and folders of audio files."""

    size: int

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
        return read_row_or_error(lambda: self.row(index), f"row {index}")

    def rows(self) -> Iterator[Row | RowError]:
        return map(self.read_row_or_error, range(self.size))


class ShardedSource(RowSource):
    """Rows that are read one after another: archives, tables with embedded audio, datasets on the Hub.

    Attributes:
        shards: their names, in an order that does not change from run to run. Each can be read alone.
        size: number of rows that belong to the split, or None where only reading all would tell.
    """

    shards: tuple[str, ...]
    size: int | None = None
    divided_by: DatasetCard | None = None  # whose column with ``each`` makes several rows of a stored one

    def fingerprint(self, columns: Collection[str]) -> str:
        """Return a text that is another one when the shards are others, as far as is known unread.

        Args:
            columns: those that are used.
        """
        return hash_values([*self.shards])

    def list_files(self) -> Sequence[str]:
        """Return the files and URLs behind the shards whose content is compared on a resume, see ``shard_contents.py``.

        Empty where the fingerprint holds hashes of their content.
        """
        return ()

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
        rows_before = 0
        try:
            with convert_to_row_error(BROKEN_SHARD, self.shards[shard], self.shards[shard]):
                for row, behind in self.read(shard, Place()):
                    rows_before = behind.row
                    yield from self.divide_row(row)
        except RowError as problem:
            problem.rows_before = rows_before
            yield problem

    def rows(self) -> Iterator[Row | RowError]:
        for shard in range(len(self.shards)):
            yield from (row for row in self.shard_rows(shard) if row is not None)

    def shard_text_rows(self, shard: int) -> Iterator[Row | RowError]:
        """Yield the rows of a shard for what they say: sources that can, leave the bytes of clips unread."""
        return (row for row in self.shard_rows(shard) if row is not None)


Source = IndexedSource | ShardedSource


def read_row_or_error(make: Callable[[], Result], key: str) -> Result | RowError:
    """Return what is made of one row, or why it cannot be used, whatever was raised.

    Args:
        key: of the row, for the errors that are returned.
    """
    try:
        with convert_to_row_error("unreadable row", key, key):
            return make()
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
    if keep is None:
        return True
    if KEY in keep.names:
        columns = {KEY: key, **columns}
    try:
        return keep.is_true(columns)
    except UserError as problem:
        if not keep.names <= set(columns):
            raise
        raise RowError("broken metadata", str(problem)) from problem


def decode_clips(row: Row, max_seconds: float, notices: list[str] | None = None) -> tuple[ClipSamples, ...]:
    """Decode the clips of a row and compare their lengths with those that the row states.

    Args:
        notices: gets what is odd about the clips, one short text for each kind, see ``ClipNotice``.

    Raises:
        RowError: when a clip cannot be used, or has another length than stated: micro-batches are filled by it.
    """
    clips = []
    for ref in row.audio:
        with convert_to_row_error("broken audio", ref.name):
            clips.append(ref.decode(max_seconds, notices))
        check_stated_length(ref, len(clips[-1]) / SAMPLE_RATE)
    return tuple(clips)


def check_stated_length(ref: AudioRef, seconds: float) -> None:
    """Refuse a clip whose stated length is wrong by more than 0.1 s and by more than 2 %.

    Args:
        seconds: of the decoded clip.

    Raises:
        RowError: "stated duration is wrong".
    """
    if ref.span is not None or ref.seconds is None:
        return
    if abs(seconds - ref.seconds) > max(TOLERANCE, TOLERANCE_SHARE * ref.seconds):
        raise RowError(
            "stated duration is wrong",
            f"{ref.name}: {ref.seconds:.2f} s stated, {seconds:.2f} s decoded; correct it in the row or leave it out",
        )
