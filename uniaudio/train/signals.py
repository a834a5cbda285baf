"""Stopping in order: a signal is a wish that the loop reads between two steps."""

from __future__ import annotations

import signal
from types import FrameType

CONTINUE_LATER = 75  # exit code: stopped early, safe to continue with --resume


class StopSignal:
    """Notes SIGTERM (a scheduler) and the first SIGINT (a person); the second SIGINT stops at once."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignal:
        self.previous = {kind: signal.signal(kind, self.note) for kind in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def __exit__(self, *exception: object) -> None:
        for kind, handler in self.previous.items():
            signal.signal(kind, handler)
