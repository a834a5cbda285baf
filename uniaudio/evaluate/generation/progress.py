"""A bar that tells how many rows of an evaluation set were asked, how fast, and how long the rest will take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class RateColumn(ProgressColumn):
    """Rows a second."""

    def render(self, task: Task) -> Text:
        """Return the speed of the last moments as text."""
        return Text("" if task.speed is None else f"{task.speed:.1f}/s", style="progress.data.speed")


class EvaluationBar:
    """Tells of one set after the other: a bar in a terminal, else a line when a set is done.

    Args:
        shown: False on all processes but the main one. share: the main process asks one row of so many.
    """

    def __init__(self, console: Console, shown: bool, share: int = 1) -> None:
        self.console, self.shown, self.share = console, shown, share
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), RateColumn())
        still = not shown or not console.is_terminal
        self.bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=still)

    @contextlib.contextmanager
    def track_set(self, name: str, rows: int | None) -> Iterator[Callable[[int], None]]:
        """Give the function to be told how many rows were asked since, of ``rows`` (None: nobody knows)."""
        started, done = time.monotonic(), 0
        task = self.bar.add_task(escape(name), total=None if rows is None else -(-rows // self.share))

        def advance(count: int) -> None:
            nonlocal done
            done += count
            self.bar.advance(task, count)

        yield advance
        self.bar.update(task, total=done)  # the split may have fewer rows
        seconds = time.monotonic() - started
        if self.shown and not self.console.is_terminal:
            rate = done / max(seconds, 1e-3)
            self.console.print(
                f"{escape(name)}: {done} rows in {seconds:.1f} s, {rate:.1f}/s", style="dim", highlight=False
            )
