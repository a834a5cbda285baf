"""Clips longer than a model takes: left out, cropped, or cut into windows that are examples of their own."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveFloat, model_validator

from uniaudio.config.records import Strict
from uniaudio.errors import RowError, UserError

How = Literal["skip", "crop", "windows"]
REST = 1.0  # seconds at the end of a clip that are no window of their own
MOST_WINDOWS = 100_000  # of one clip


class LongClipsFile(Strict):
    """What becomes of clips that are longer than `seconds`. `long_clips: crop` is short for `{how: crop}`.

    Read by: train, eval, check, plan, data commands.
    """

    how: How
    """`skip` leaves them out; `crop` takes `seconds` of them, at a random place in training and from the middle in
    evaluation; `windows` makes an example of every stretch of `seconds`.
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
            raise ValueError(f"hop belongs to `how: windows`, here it is {self.how}")
        if self.hop is not None and self.seconds is not None and self.hop > self.seconds:
            raise ValueError(
                f"hop: {self.hop:g} is more than seconds: {self.seconds:g}; sound between windows would be left out"
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
                f"{where}: long_clips.hop: {self.hop:g} is more than a window, which has {seconds:g} s; lower it, or "
                "sound between windows would be left out"
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
    return [(start, start + seconds) for start in starts[:-1]] + [(starts[-1], length)]
