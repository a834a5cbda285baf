"""Stopping in order: the loop reads between two steps whether a signal has come."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any

from uniaudio.distributed import is_distributed
from uniaudio.errors import UserError

CONTINUE_LATER = 75  # exit code: stopped early, safe to continue with --resume


class StopSignal:
    """Notes SIGTERM (a scheduler) and SIGINT (a person); a SIGINT after any of them ends the run at once.

    Signals come to the main thread of Python alone: training in another one has none to note. One rank of several that
    ends with an error of its own or of another rank ignores SIGTERM from then on.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> StopSignal:
        is_reached = threading.current_thread() is threading.main_thread()
        kinds = (signal.SIGTERM, signal.SIGINT) if is_reached else ()
        self.previous = {kind: signal.signal(kind, self.note) for kind in kinds}
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def request(self) -> None:
        """Stop before the next step, as after a signal."""
        self.requested = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore_handlers(self.previous)
        if self.previous and is_distributed() and error is not None and not isinstance(error, UserError):
            # the exchange with the other ranks is broken and this one is about to end; a launcher that has seen
            # another one fail sends SIGTERM, which must not come before the reason is printed and the lock released
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def restore_handlers(previous: Mapping[signal.Signals, Any]) -> None:
    """Give signals the handlers back that ``signal.signal`` returned for them."""
    for kind, handler in previous.items():
        signal.signal(kind, handler)
