"""What commands show while they work: bars on a terminal, plain lines elsewhere, and no noise of libraries."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from functools import cache
from typing import Any

import tqdm
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from uniaudio.outputs import is_main_rank

PLAIN_WIDTH = 1000  # columns of files and pipes: tables and sentences are never wrapped in them
WIDE = 120  # columns of a terminal that has room for a bar beside the figures
PLAIN_SECONDS = 20.0  # between two lines of progress where there is no terminal

# Warnings of libraries about their own insides, by category and the beginning of the message. Others are shown.
KNOWN_WARNINGS: tuple[tuple[type[Warning], str], ...] = (
    (FutureWarning, r"`torch\.distributed\.\w+` is deprecated"),  # DeepSpeed calls them several times a step
    (FutureWarning, r"`broadcast_buffers` is deprecated"),  # its successor synchronizes at the start
    (FutureWarning, r"`torch\.cuda\.amp\.\w+\(args\.\.\.\)` is deprecated"),
    (UserWarning, r"Could not find a config file in "),  # peft, of models that are made here
    (UserWarning, r"Model with `tie_word_embeddings=True` and the tied_target_modules"),
)
KNOWN_LOGS = {  # lines that libraries log, by logger
    "DeepSpeed": ("Setting accelerator to CPU", "A module has unknown inputs or outputs type"),
    "accelerate.utils.other": ("Detected kernel version",),
    # what the store is, and tries of its own, with their traces; what comes of them is said where the file is opened
    "gcsfs": (
        "Could not determine",
        "non-retriable exception",
        "out of retries",
        "Resource not found",
        "not found or",
    ),
    # it looks for credentials there, too
    "google.auth._default": ("Authentication failed using Compute Engine",),
    # tries of its own without a network; a sentence says in the end that the Hub cannot be reached
    "huggingface_hub.utils._http": ("thrown while requesting", "[Retry "),
    # of the tokenizer of an exported model, which is read beside the config.json of the whole
    "transformers.configuration_utils": ("a model of type `uniaudio_lm`", "a model of type `ultravox`"),
}
LIBRARY_BARS = (  # of transformers and datasets, by the beginning of their texts
    *("Loading weights", "Writing model shards", "Loading checkpoint shards", "Loading dataset"),
    *("Resolving data files", "Generating", "Casting", "Saving the dataset"),
)


def make_console(stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console as wide as its terminal; a file or a pipe has no width.

    Texts are printed as they are: names from data and paths may hold ``[noise]`` or ``:bird:``, which are no markup.
    """
    console = Console(stderr=stderr, quiet=quiet, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def make_table(title: str, *columns: str, numbers: int = 0) -> Table:
    """Return a table whose last columns hold numbers."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        is_number = place >= len(columns) - numbers
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    return table


def print_warning(sentence: str, console: Console | None = None) -> None:
    """Print a sentence about something that may be wrong; None: on stdout, where the lines of a run are."""
    (console or make_console()).print(sentence, style="yellow", soft_wrap=True)


def announce(sentence: str) -> None:
    """Say on stderr what is being waited for, on the main process of a launch; libraries show no bars from then on."""
    hide_library_bars()
    if is_main_rank():
        print(sentence, file=sys.stderr, flush=True)


@cache  # a checkpoint is opened many times in a command
def warn_once(sentence: str) -> None:
    """Print a warning on stderr, on the main process of a launch, unless this process has printed it before."""
    if is_main_rank():
        print_warning(sentence, make_console(stderr=True))


def format_number(value: float) -> str:
    """Return a rate or a duration: one decimal below 10, none above."""
    return f"{value:.1f}" if abs(value) < 9.95 else f"{value:,.0f}"


def format_difference(value: float, decimals: int) -> str:
    """Return a difference with its sign; what is rounded to zero is never negative."""
    return f"{round(value, decimals) + 0.0:+.{decimals}f}"


def format_duration(seconds: float | None) -> str:
    """Return h:mm:ss, or a question mark where nothing is known yet."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


class WorkProgress(Progress):
    """Bars on a terminal; elsewhere a plain line for each kind of work every ``PLAIN_SECONDS``.

    Args:
        unit: what is counted ("rows"); rates are per second of it unless ``rate=`` of ``update`` says another.
    """

    def __init__(
        self, console: Console, unit: str, shown: bool = True, columns: tuple[ProgressColumn, ...] = ()
    ) -> None:
        standard = (
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        # beside longer figures rich would cut both
        bar = (BarColumn(),) if not columns or console.width >= WIDE else ()
        super().__init__(
            TextColumn("{task.description}", markup=False),
            *bar,
            MofNCompleteColumn(),
            *(columns or standard),
            console=console,
            disable=not shown or not console.is_terminal,
        )
        self.unit, self.shown = unit, shown
        self.last_line = time.monotonic()

    def begin(self, text: str, total: int | None, unit: str | None = None) -> TaskID:
        """Begin a kind of work of so many units; None: nobody knows.

        Args:
            unit: of this kind alone.
        """
        return self.add_task(text, total=total, rate="", unit=unit or self.unit)

    def count(self, task: TaskID, units: int = 1, rate: str | None = None) -> None:
        """Count units that are done.

        Args:
            rate: to show in place of that of the units.
        """
        self.update(task, advance=units)
        state = self.tasks[self.task_ids.index(task)]
        if rate is None:
            rate = "" if state.speed is None else f"{format_number(state.speed)} {state.fields['unit']}/s"
        self.update(task, rate=rate)
        if self.shown and not self.console.is_terminal and time.monotonic() - self.last_line >= PLAIN_SECONDS:
            self.last_line = time.monotonic()
            self.console.print(self.describe(task))

    def describe(self, task: TaskID) -> str:
        """Return a line about a kind of work."""
        state = self.tasks[self.task_ids.index(task)]
        total = "?" if state.total is None else f"{state.total:,.0f}"
        done = f"{state.description}: {state.completed:,.0f} of {total} {state.fields['unit']}"
        parts = [done, state.fields["rate"]]
        parts.append(f"eta {format_duration(state.time_remaining)}")
        return "  ".join(part for part in parts if part)


def silence_known_warnings() -> None:
    """Keep off the screen what ``KNOWN_WARNINGS``, ``KNOWN_LOGS`` and ``LIBRARY_BARS`` list; all else is shown."""
    hide_library_bars()
    for category, message in KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)
    for name, beginnings in KNOWN_LOGS.items():
        logger = logging.getLogger(name)
        if not any(isinstance(each, KnownLogFilter) for each in logger.filters):
            logger.addFilter(KnownLogFilter(beginnings))


class KnownLogFilter(logging.Filter):
    """Drops log lines that contain one of the given texts."""

    def __init__(self, texts: tuple[str, ...]) -> None:
        super().__init__()
        self.texts = texts

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(text in record.getMessage() for text in self.texts)


@cache  # the class is changed once in a process
def hide_library_bars() -> None:
    """Let libraries read and write weights and tables without bars of their own; those of downloads are shown."""
    make_bar = tqdm.tqdm.__init__  # of all classes of bars, those that are derived elsewhere included

    def make_bar_or_none(
        self: Any, iterable: Any = None, desc: str | None = None, *args: Any, **kwargs: Any
    ) -> None:
        if str(desc or "").startswith(LIBRARY_BARS):
            kwargs["disable"] = True
        make_bar(self, iterable, desc, *args, **kwargs)

    tqdm.tqdm.__init__ = make_bar_or_none
