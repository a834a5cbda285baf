"""Bounds on what one rendering of a template may do: steps of loops, calls, characters and time.

Jinja's sandbox keeps a template from reaching anything; it does not keep it from multiplying. Every way in which a
value can grow (``*``, ``+``, ``~``, ``**``, ``%``, filters, methods, macros, loops) is counted against one budget a
rendering, before the value is made where its size is known before. ``jinja_sandbox.py`` puts the counting into Jinja.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from itertools import islice
from typing import Any

from jinja2 import TemplateRuntimeError

STEPS = 10_000  # of loops, calls and filters in one rendering
SIZE = 1_000_000  # characters and list items that one rendering makes
SECONDS = 1.0
PIECES = 64  # of an output, after which its size is looked at
WIDTH = 1_000  # of fields, lines and groups
INDENT = 32  # characters of an indentation or a separator in JSON, written once for every level or item
DIGITS = 10_000  # binary ones of a whole number
SLOW_SIZE = 100_000  # characters for filters that read a text many times
PADDING = (
    "center",
    "ljust",
    "rjust",
    "zfill",
    "expandtabs",
    "to_bytes",
    "batch",
    "slice",
    "indent",
    "wordwrap",
)
SLOW = ("striptags", "urlize", "wordwrap", "xmlattr")
WIDE_PERCENT = re.compile(r"%(?:\([^)]*\))?[^%a-zA-Z]*(?:\*|\d{4})")
WIDE_BRACES = re.compile(r"\{[^{}]*:[^{}]*(?:\d{4}|\{)")
CONTAINERS = (list, tuple, set, frozenset, dict)


class TemplateLimitError(TemplateRuntimeError):
    """A template asked for more than one rendering may do."""


class RenderBudget(threading.local):
    """What the rendering that goes on in this thread has used."""

    steps = 0
    size = 0
    deadline = float("inf")

    def begin(self) -> None:
        """Start a rendering."""
        self.steps = self.size = 0
        self.deadline = time.monotonic() + SECONDS

    def spend(self, steps: int, size: int) -> None:
        """Count steps and characters.

        Raises:
            TemplateLimitError: when they are too many, or the time is over.
        """
        self.steps += steps
        self.size += size
        if self.steps > STEPS:
            raise TemplateLimitError(
                f"the template takes more than {STEPS:,} steps of loops, calls and filters"
            )
        self.allow(0)
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"the template takes more than {SECONDS:g} s")

    def allow(self, size: int) -> None:
        """Refuse a value of so many characters before it is made; it is counted when it is there.

        Raises:
            TemplateLimitError: when that would be too many.
        """
        if self.size + size > SIZE:
            raise TemplateLimitError(f"the template renders more than {SIZE:,} characters")


BUDGET = RenderBudget()


def measure_size(value: Any) -> int:
    """Return the characters and items of a value, those inside lists included, or some number over ``SIZE``."""
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, CONTAINERS):
        return 1
    total = 0
    waiting: list[Any] = [value]
    while waiting and total <= SIZE:
        inside = waiting.pop()
        for item in inside.items() if isinstance(inside, dict) else inside:
            if isinstance(item, CONTAINERS):
                waiting.append(item)
                total += 1
            else:
                total += len(item) if isinstance(item, str | bytes) else 1
            if total > SIZE:
                break
    return total


def count_steps(values: Any) -> Any:
    """Return what a loop goes through; its steps are counted, at once where their number is known."""
    if isinstance(values, Sized) and isinstance(values, list | tuple | str | Mapping | range):
        BUDGET.spend(len(values), 0)
        return values
    return count_each(values)


def count_each(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        BUDGET.spend(1, 0)
        yield value


def concat_values(*values: Any) -> str:
    """Join values as text: Jinja's ``~``."""
    BUDGET.allow(sum(map(measure_size, values)))
    return "".join(map(str, values))


def concat_output(pieces: Iterable[str]) -> str:
    """Put the pieces of an output together."""
    if isinstance(pieces, list):
        BUDGET.allow(sum(map(len, pieces)))
        return "".join(pieces)
    kept, size, rest = list[str](), 0, iter(pieces)
    while some := list(islice(rest, PIECES)):
        size += sum(map(len, some))
        if size > SIZE:
            raise TemplateLimitError(f"the template renders more than {SIZE:,} characters")
        kept += some
    return "".join(kept)


def check_growth(name: str, value: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]) -> None:
    """Look at a filter or method before it runs.

    Raises:
        TemplateLimitError: when its result could be too large.
    """
    size = measure_size(value)
    BUDGET.allow(size)
    given = (*arguments, *options.values())
    if name in PADDING and any(isinstance(one, int) and abs(one) > WIDTH for one in given):
        raise TemplateLimitError(f"{name}: a width over {WIDTH:,}")
    if name == "tojson" and any(
        (one if isinstance(one, int) else measure_size(one)) > INDENT for one in given
    ):
        raise TemplateLimitError(f"tojson: an indentation or separator over {INDENT} characters")
    if name in SLOW and size > SLOW_SIZE:
        raise TemplateLimitError(f"{name}: a text over {SLOW_SIZE:,} characters")
    if name == "replace" and len(arguments) > 1:
        old, new = str(arguments[0]), str(arguments[1])
        times = str(value).count(old) if old else size + 1
        BUDGET.allow(size + times * len(new))
    elif name in ("indent", "translate", "expandtabs"):
        longest = max([measure_size(one) for one in given] or [1])
        BUDGET.allow(size * longest)
    elif name == "format":
        check_format(value, given)
    elif name == "sum" and any(isinstance(one, list | tuple) for one in given):
        raise TemplateLimitError("sum: adds only numbers; use join for texts")


def check_format(text: Any, given: tuple[Any, ...]) -> None:
    """Look at ``text % given``.

    Raises:
        TemplateLimitError: for wide fields and arguments that are too large.
    """
    if WIDE_PERCENT.search(str(text)):
        raise TemplateLimitError(f"format: a width over {WIDTH:,}, or a width given as a value")
    BUDGET.allow(measure_size(text) + sum(map(measure_size, given)))


def multiply(left: Any, right: Any) -> None:
    """Look at ``left * right``."""
    for values, times in ((left, right), (right, left)):
        if isinstance(values, str | bytes | list | tuple) and isinstance(times, int):
            BUDGET.allow(len(values) * max(times, 0))
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > DIGITS:
        raise TemplateLimitError("a number with too many digits")


def raise_power(left: Any, right: Any) -> None:
    """Look at ``left ** right``."""
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > DIGITS:
        raise TemplateLimitError("a number with too many digits")


def add(left: Any, right: Any) -> None:
    """Look at ``left + right``."""
    if isinstance(left, Sized) and isinstance(right, Sized):
        BUDGET.allow(len(left) + len(right))


def take_remainder(left: Any, right: Any) -> None:
    """Look at ``left % right``, which is formatting for texts."""
    if isinstance(left, str):
        check_format(left, right if isinstance(right, tuple) else (right,))


CHECKS: Mapping[str, Callable[[Any, Any], None]] = {
    "*": multiply,
    "**": raise_power,
    "+": add,
    "%": take_remainder,
}


def count_result(value: Any) -> Any:
    """Count a value that was made, lists with all that is inside them, and return it."""
    if isinstance(value, str | bytes | list | tuple | set | frozenset | dict):
        BUDGET.spend(0, measure_size(value))
    return value


def allow_joined(values: Any, separator: Any) -> list[Any]:
    """Return values that are to be joined as a list, if the result is not too large."""
    kept = list(count_steps(values))
    BUDGET.allow(measure_size(kept) + len(kept) * measure_size(separator))
    return kept
