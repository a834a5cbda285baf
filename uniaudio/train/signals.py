"""Stopping in order: the loop reads between two steps whether a signal has come."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from types import FrameType, TracebackType
from typing import Any

from uniaudio.errors import UserError
from uniaudio.launched_processes import has_peers, ignore_sigterm, is_rank_of_launch

CONTINUE_LATER = 75  # exit code: stopped early, safe to continue with --resume


class StopSignal:
    """Notes SIGTERM (a scheduler) and SIGINT (a person); a SIGINT after any of them ends the run at once.

    Signals come to the main thread of Python alone: training in another one has none to note. One rank of several that
    ends with an error of its own or of another rank ignores SIGTERM from then on, see ``ignore_sigterm``; with a user's
    mistake only in a process that ends with its run, for a script may catch that and go on.
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
        if error is None or not self.previous or not has_peers():
            return
        if is_rank_of_launch() or not isinstance(error, UserError):
            ignore_sigterm()


def restore_handlers(previous: Mapping[signal.Signals, Any]) -> None:
    """Give signals the handlers back that ``signal.signal`` returned for them."""
    for kind, handler in previous.items():
        signal.signal(kind, handler)
