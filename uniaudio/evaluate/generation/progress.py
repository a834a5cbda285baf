"""How many rows of an evaluation set are answered, how fast, and how long the rest will take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape

from uniaudio.console import WorkProgress, format_number


class EvaluationBar:
    """Shows one set after the other: a bar on a terminal, else lines, and one when a set is done.

    Args:
        shown: False on all processes but the main one. share: the main process answers one row of so many.
    """

    def __init__(self, console: Console, shown: bool, share: int = 1) -> None:
        self.console, self.shown, self.share = console, shown, share
        self.bar = WorkProgress(console, "rows", shown)

    @contextlib.contextmanager
    def track_set(self, name: str, rows: int | None) -> Iterator[Callable[[int], None]]:
        """Give a function that takes the number of rows answered since, of ``rows`` (None: nobody knows)."""
        started, done = time.monotonic(), 0
        task = self.bar.begin(escape(name), None if rows is None else -(-rows // self.share))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.bar.count(task, count)

        yield advance
        self.bar.update(task, total=done)  # the split may have fewer rows
        seconds = time.monotonic() - started
        if self.shown and not self.console.is_terminal:
            rate = format_number(done / max(seconds, 1e-3))
            self.console.print(
                f"{name}: {done} rows in {format_number(seconds)} s, {rate} rows/s", markup=False
            )
