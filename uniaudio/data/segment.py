"""Columns that name a part of a recording: the row's clip is that segment, not the whole recording."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
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
                raise RowError("missing column", f"{name}: no {column} beside the rest of the segment")
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


def read_span(
    columns: Mapping[str, Any], segment: Segment | None, is_automatic: bool, name: str
) -> tuple[float, float] | None:
    """Return the segment of the recording that a row names, or None for all of it.

    Args:
        segment: of the card. is_automatic: whether the card says nothing: then NeMo's pair ``offset`` and ``duration``
            is a segment wherever both are numbers.

    Raises:
        RowError: as ``Segment.span``, and for an ``offset`` above zero whose end nobody states.
    """
    if segment is not None:
        return segment.compute_span(columns, name)
    offset = read_number(columns.get(NEMO.start)) if is_automatic else None
    if offset is None or math.isnan(offset):
        return None
    if read_number(columns.get(NEMO.stop)) is not None:
        return NEMO.compute_span(columns, name)
    if offset == 0:
        return None
    raise RowError(
        "broken metadata",
        f"{name}: an offset of {offset:g} and no duration; name the columns of the segment in `segment` of the card, "
        f"or write `segment: none` there",
    )


def list_unused_time_columns(
    columns: Iterable[str], segment: Segment | None, used: Iterable[str]
) -> list[str]:
    """Return the columns that look like times of a segment, where the card names no segment.

    Args:
        used: columns that a card or template makes use of otherwise.
    """
    present = set(columns)
    if segment is not None or {NEMO.start, NEMO.stop} <= present:
        return []
    return [name for name in TIME_COLUMNS if name in present - set(used)]
