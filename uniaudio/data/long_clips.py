"""Lengths of the clips of a row, and those longer than a model takes: left out, cropped, or cut into windows."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveFloat, model_validator

from uniaudio.config.records import Strict
from uniaudio.errors import RowError, UserError, convert_to_row_error

if TYPE_CHECKING:  # what a card states is here
    from uniaudio.data.sources.base import AudioRef, Row

How = Literal["skip", "crop", "windows"]
REST = 1.0  # seconds at the end of a clip that are no window of their own
MOST_WINDOWS = 100_000  # of one clip
WINDOW_MARK = "#t="  # between the key of a row and the time of a window, as in a media fragment
SHORTEST = 0.01  # seconds; less than one mel window is no clip


class LongClipsFile(Strict):
    """What to do with clips that are longer than `seconds`. `long_clips: crop` is short for `{how: crop}`.

    Read by: train, eval, check, plan, data commands.
    """

    how: How
    """`skip` leaves them out; `crop` takes `seconds` of them, at a random place in training and from the middle in
    evaluation; `windows` makes an example of every window of `seconds`.
    """
    seconds: PositiveFloat | None = None
    """Longest clip, and length of a crop or window. Default: in training `data.max_seconds`, in evaluation the
    encoder's reach.
    """
    hop: PositiveFloat | None = None
    """Seconds from the beginning of a window to that of the next. Default: `seconds`, without overlap."""

    @model_validator(mode="after")
    def check_hop(self) -> LongClipsFile:
        if self.hop is not None and self.how != "windows":
            raise ValueError(f"hop is only for `how: windows`, but how is {self.how}")
        if self.hop is not None and self.seconds is not None and self.hop > self.seconds:
            raise ValueError(
                f"hop: {self.hop:g} is more than seconds: {self.seconds:g}; audio between windows "
                "would be lost"
            )
        return self


def expand_long_clips(value: Any) -> Any:
    """Return the record that a word alone stands for; anything else as it is, for the record to check."""
    return {"how": value} if isinstance(value, str) else value


LongClipsSetting = Annotated[
    LongClipsFile | None,
    BeforeValidator(expand_long_clips, json_schema_input_type=How | LongClipsFile | None),
]


@dataclass(frozen=True)
class LongClips:
    """How clips above a limit are treated, see ``LongClipsFile``; ``seconds`` of None is the limit that applies."""

    how: How = "skip"
    seconds: float | None = None
    hop: float | None = None

    @property
    def overlaps(self) -> bool:
        """Whether neighbouring windows have sound in common."""
        return self.hop is not None and (self.seconds is None or self.hop < self.seconds)

    @classmethod
    def of(cls, file: LongClipsFile) -> LongClips:
        """Take over what a card or a recipe states."""
        return cls(file.how, file.seconds, file.hop)

    def fill_seconds(self, usual: float, where: str) -> LongClips:
        """Return the same with its lengths stated.

        Args:
            usual: length of a crop or window that is not stated.

        Raises:
            UserError: when the hop is above the length.
        """
        seconds = self.seconds if self.seconds is not None else usual
        if self.hop is not None and self.hop > seconds:
            raise UserError(
                f"{where}: long_clips.hop: {self.hop:g} is more than a window, which has "
                f"{seconds:g} s; lower it, because audio between windows would be lost"
            )
        return LongClips(self.how, seconds, self.hop if self.hop is not None else seconds)


def list_window_spans(length: float, seconds: float, hop: float, name: str) -> list[tuple[float, float]]:
    """Return (start, end) of the windows of a clip in order; together they hold all of it.

    The last window is what is left. A rest of less than ``REST`` (or half a window) belongs to the window before it.

    Raises:
        RowError: "clip too long" for more than ``MOST_WINDOWS``.
    """
    rest = min(REST, seconds / 2)
    if length <= seconds + rest:
        return [(0.0, length)]
    count = 1 + math.ceil((length - seconds - rest) / hop)
    if count > MOST_WINDOWS:
        raise RowError("clip too long", f"{name}: {length:.1f} s would be {count:,} windows")
    starts = [number * hop for number in range(count)]
    # a sum may be rounded to just below the product at which the next window starts
    ends = [max(start + seconds, after) for start, after in pairwise(starts)]
    return list(zip(starts, [*ends, length], strict=True))


def read_row_seconds(row: Row) -> list[float]:
    """Return the length of every clip of a row in seconds, as the row or the audio header states it.

    Raises:
        RowError: when it cannot be known.
    """
    with convert_to_row_error("broken audio", row.key):
        lengths = [ref.read_seconds() for ref in row.audio]
    if not all(map(math.isfinite, lengths)):
        raise RowError("broken audio", f"{row.key}: a length of {lengths} s")
    return lengths


def cut_long_clips(row: Row, long_clips: LongClips, rng: random.Random | None = None) -> list[Row]:
    """Return the rows that stand for a row: itself, its crop, or its windows in order; no audio is decoded.

    Args:
        long_clips: with its lengths stated, see ``fill_seconds``.
        rng: chooses the place of a crop; None crops the middle.

    Raises:
        RowError: when a length cannot be known, or windows would be cut of several clips or be too many.
    """
    if long_clips.how == "skip" or long_clips.seconds is None:
        return [row]
    lengths = read_row_seconds(row)
    if long_clips.how == "crop":
        pairs = zip(row.audio, lengths, strict=True)
        return [replace(row, audio=tuple(crop_ref(ref, n, long_clips.seconds, rng) for ref, n in pairs))]
    spans = list_window_spans(max(lengths), long_clips.seconds, long_clips.hop or long_clips.seconds, row.key)
    if len(spans) == 1:
        return [row]
    if len(row.audio) > 1:
        raise RowError(
            "clip too long",
            f"{row.key}: only a single clip can be cut into windows, but this row has several",
        )
    return [cut_window(row, span) for span in spans]


def list_training_pieces(
    row: Row, long_clips: LongClips, longest: float, rng: random.Random | None = None
) -> list[tuple[Row, list[float]]]:
    """Return what training has of a row, with the seconds of every clip: the row, its crop, or its windows in order.

    Args:
        long_clips: with its lengths stated. longest: seconds of the longest clip of the run. rng: places a crop.

    Raises:
        RowError: as ``cut_long_clips`` and ``measure_clips``.
    """
    pieces = cut_long_clips(row, long_clips, rng)
    return [(piece, measure_clips(piece, long_clips, longest)) for piece in pieces]


def measure_clips(row: Row, long_clips: LongClips, longest: float) -> list[float]:
    """Return the seconds of every clip of a row that training can use.

    Args:
        row: already cropped or cut. longest: see ``list_training_pieces``.

    Raises:
        RowError: "empty audio", "clip too long" where long clips are skipped, "broken audio".
    """
    lengths = read_row_seconds(row)
    longest = long_clips.seconds if long_clips.seconds is not None else longest
    for ref, length in zip(row.audio, lengths, strict=True):
        if length < SHORTEST:
            raise RowError("empty audio", f"{ref.name}: {length:g} s, less than {SHORTEST:g} s")
        if length > longest and long_clips.how == "skip":
            limit = "long_clips.seconds" if long_clips.seconds is not None else "data.max_seconds"
            raise RowError("clip too long", f"{ref.name}: {length:.1f} s, {limit} is {longest:g}")
    return lengths


def list_piece_spans(row: Row, piece: Row) -> list[tuple[float, float] | None]:
    """Return (start, end) in seconds of every clip of a row that a piece of the row has; None for all of a clip."""
    spans: list[tuple[float, float] | None] = []
    for whole, ref in zip(row.audio, piece.audio, strict=True):
        begin = whole.span[0] if whole.span is not None else 0.0
        is_whole = ref.span is None or ref.span == whole.span
        spans.append(None if is_whole or ref.span is None else (ref.span[0] - begin, ref.span[1] - begin))
    return spans


def crop_ref(ref: AudioRef, length: float, seconds: float, rng: random.Random | None) -> AudioRef:
    """Return a reference to ``seconds`` of a clip of the given length; a clip that is no longer stays whole."""
    if length <= seconds:
        return ref
    place = rng.random() if rng is not None else 0.5
    start = place * (length - seconds)
    return cut_ref(ref, (start, start + seconds))


def cut_window(row: Row, span: tuple[float, float]) -> Row:
    """Return a window of a row's only clip, its time behind the key as in a media fragment: ``KEY#t=30,60``."""
    start, end = map(format_seconds, span)
    key = f"{row.key}{WINDOW_MARK}{start},{end}"
    return replace(row, key=key, audio=(cut_ref(row.audio[0], span),), window=span)


def cut_ref(ref: AudioRef, span: tuple[float, float]) -> AudioRef:
    """Return a reference to a part of a clip, which may itself be a part of a recording."""
    begin = ref.span[0] if ref.span is not None else 0.0
    return replace(ref, span=(begin + span[0], begin + span[1]))


def format_seconds(seconds: float) -> str:
    """Write seconds to the millisecond, without zeros at the end."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")
