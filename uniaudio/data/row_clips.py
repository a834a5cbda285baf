"""The clips of a row: their lengths and their samples; whatever goes wrong is the row's fault."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from uniaudio.data.sources.base import AudioRef, Row
from uniaudio.errors import RowError, convert_to_row_error
from uniaudio.types import SAMPLE_RATE

ClipSamples = NDArray[np.int16]  # samples [S] at 16 kHz
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
