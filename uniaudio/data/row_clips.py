"""The clips of a row: their lengths, parts and samples; whatever goes wrong is the row's fault."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.long_clips import LongClips, list_window_spans
from uniaudio.data.sources.base import AudioRef, Row
from uniaudio.errors import RowError, convert_to_row_error
from uniaudio.types import SAMPLE_RATE

ClipSamples = NDArray[np.int16]  # samples [S] at 16 kHz
WINDOW_MARK = "#t="  # between the key of a row and the time of a window, as in a media fragment
SHORTEST = 0.01  # seconds; less than one mel window is no clip
TOLERANCE, TOLERANCE_SHARE = 0.1, 0.02  # seconds, and share of a stated length, that it may be wrong by


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
        raise RowError("clip too long", f"{row.key}: windows are cut of one clip, this row has several")
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
            raise RowError("empty audio", f"{ref.name}: {length:g} s")
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
    return Row(f"{row.key}{WINDOW_MARK}{start},{end}", row.columns, (cut_ref(row.audio[0], span),), span)


def cut_ref(ref: AudioRef, span: tuple[float, float]) -> AudioRef:
    """Return a reference to a part of a clip, which may itself be a part of a recording."""
    begin = ref.span[0] if ref.span is not None else 0.0
    return replace(ref, span=(begin + span[0], begin + span[1]))


def format_seconds(seconds: float) -> str:
    """Write seconds to the millisecond, without zeros at the end."""
    return f"{seconds:.3f}".rstrip("0").rstrip(".")


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
