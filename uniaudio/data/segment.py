"""Columns that name a part of a recording: the row's clip is that segment, not the whole recording."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from uniaudio.errors import RowError

# names under which manifests state times; said where a card makes no use of them
TIME_COLUMNS = (
    *("offset", "start", "end", "begin", "stop", "start_time", "end_time", "begin_time", "stop_time"),
    *("start_sec", "end_sec", "start_seconds", "end_seconds", "segment_start_time", "segment_end_time"),
)


@dataclass(frozen=True)
class Segment:
    """The columns that name a segment, in seconds of the recording.

    Args:
        start: column with the time at which the segment begins. stop: column with its end or its duration.
        stop_is_end: whether ``stop`` holds the end.
    """

    start: str
    stop: str
    stop_is_end: bool

    def compute_span(self, columns: Mapping[str, Any], name: str) -> tuple[float, float] | None:
        """Return (start, end) in seconds as a row states them; None where both columns are empty.

        Raises:
            RowError: "missing column" where one of them is missing or empty, "broken metadata" where they are no times.
        """
        values = [columns.get(column) for column in (self.start, self.stop)]
        if all(is_empty(value) for value in values):
            return None
        for column, value in zip((self.start, self.stop), values, strict=True):
            if is_empty(value):
                raise RowError(
                    "missing column",
                    f"{name}: no {column}, although other columns of the segment have values",
                )
        start, stop = (read_number(value) for value in values)
        if start is None or stop is None:
            raise RowError(
                "broken metadata",
                f"{name}: {self.start} and {self.stop} must be seconds, got {values[0]!r} and {values[1]!r}",
            )
        end = stop if self.stop_is_end else start + stop
        if not 0 <= start < end < math.inf:
            raise RowError("broken metadata", f"{name}: a segment from {start:g} to {end:g} s")
        return start, end


NEMO = Segment("offset", "duration", stop_is_end=False)
# pairs of columns that need not be named: in manifests, and in sources whose columns may mean anything else, too
MANIFEST_SEGMENTS = (
    Segment("start", "end", stop_is_end=True),
    Segment("start", "duration", stop_is_end=False),
    NEMO,
)


@dataclass(frozen=True)
class SegmentColumns:
    """Where a card's rows may state the times of a segment.

    Args:
        named: the columns that the card names. automatic: pairs that count where it says nothing, the first that a row
            has. is_strict: whether a value in them that is not a number is an error; else it means something else.
    """

    named: Segment | None = None
    automatic: tuple[Segment, ...] = ()
    is_strict: bool = False

    @property
    def names(self) -> frozenset[str]:
        """All columns that are looked at."""
        pairs = (self.named,) if self.named is not None else self.automatic
        return frozenset(name for pair in pairs for name in (pair.start, pair.stop))

    def without(self, used: Set[str]) -> SegmentColumns:
        """Return what is left where templates make other use of ``start`` and ``end``: they speak of them."""
        kept = (pair for pair in self.automatic if pair is NEMO or not {pair.start, "end"} & used)
        return replace(self, automatic=tuple(kept))

    def read_span(self, columns: Mapping[str, Any], name: str) -> tuple[float, float] | None:
        """Return the segment of the recording that a row states, or None for all of it.

        Raises:
            RowError: as ``Segment.compute_span``, and for a beginning above zero whose end nobody states.
        """
        if self.named is not None:
            return self.named.compute_span(columns, name)
        for pair in self.automatic:
            if self.has_time(columns, pair.start) and self.has_time(columns, pair.stop):
                return pair.compute_span(columns, name)
        for pair in self.automatic:
            if self.has_time(columns, pair.start) and read_number(columns[pair.start]) != 0:
                raise RowError(
                    "broken metadata",
                    f"{name}: {pair.start} is {columns[pair.start]!r}, but there is neither an end "
                    "nor a duration; name the columns of the segment in `segment` in the card, or "
                    "write `segment: none` there",
                )
        return None

    def has_time(self, columns: Mapping[str, Any], name: str) -> bool:
        """Return whether a row states a time in a column: where strict, anything but nothing, which has to be one."""
        value = columns.get(name)
        if self.is_strict:
            return not is_empty(value)
        number = read_number(value)
        return number is not None and not math.isnan(number)


def is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def read_number(value: Any) -> float | None:
    """Return a number, also one that a table holds as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def list_unused_time_columns(
    columns: Iterable[str], segment: SegmentColumns, used: Iterable[str]
) -> list[str]:
    """Return the columns that look like times of a segment, where the card names no segment.

    Args:
        used: columns that a card or template makes use of otherwise.
    """
    present = set(columns)
    if segment.named is not None or any({p.start, p.stop} <= present for p in segment.automatic):
        return []
    return [name for name in TIME_COLUMNS if name in present - set(used)]
