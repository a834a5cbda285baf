"""The exceptions that are part of the interface: a user's mistake, an unusable row, a process that was lost."""

from __future__ import annotations

import math
import numbers
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

MAX_DETAIL = 500  # characters of a name or a reason that are shown and stored
UNPRINTABLE = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's categories of control signs, surrogates and line ends

# values of environment variables that configs and cards name, and what is shown instead
HIDDEN: dict[str, str] = {}
# what URLs hold of secrets: a user with password or token, and signatures and keys behind the question mark
SECRET_KEYS = (
    "x-amz-[a-z-]+|x-goog-[a-z-]+|awsaccesskeyid|signature|sig|[a-z_-]*(?:token|key|password|secret)"
)
URL_SECRETS = re.compile(
    rf"""(?<=://)[^/\s@]+(?=@)|(?<=[?&])((?:{SECRET_KEYS})=)[^&\s'")]*[^&\s'"):;,.]""", re.IGNORECASE
)
LEAST_HIDDEN = 4  # characters of a value; shorter ones hold no secret and stand in many words


def hide_value(value: str, shown: str) -> None:
    """Show a text in the place of a value in all messages and lists from now on: a place may hold a key or a token."""
    value = value.rstrip("/")
    if len(value) >= LEAST_HIDDEN:
        HIDDEN[value] = shown


def mask_values(text: str) -> str:
    """Return a text without the values that are hidden and without secrets in URLs."""
    has_url = "://" in text
    for value in sorted(HIDDEN, key=len, reverse=True):  # one may begin with another one
        text = text.replace(value, HIDDEN[value])
    return URL_SECRETS.sub(lambda match: f"{match[1] or ''}***", text) if has_url else text


class UserError(Exception):
    """A mistake the user can mend. The message is one sentence that names the thing and the fix.

    The command line prints it without a traceback and exits with code 2.
    """

    def __init__(self, message: str = "") -> None:
        # a name of a file may hold anything
        super().__init__(mask_values(message).encode("utf-8", "backslashreplace").decode())


class RowError(Exception):
    """One row of a source cannot be used (missing file, broken audio, unknown label ...).

    The row is skipped, counted by ``reason`` and listed in ``skipped.jsonl``; it never ends the run on its own.

    Args:
        reason: short, stable, countable ("missing file", "non-finite samples", "unknown label" ...).
        detail: what a person needs to find and mend the row; cut where it is very long.

    Attributes:
        key: of the row, where the source that raised it knows the key.
        rows_before: rows that were read before a broken shard broke.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        detail = escape_text(detail)
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail
        self.key = ""
        self.rows_before = 0

    def copy(self) -> RowError:
        """Return the same error, to be raised: one that is kept and raised again and again grows."""
        return RowError(self.reason, self.detail)


class LostProcessError(Exception):
    """Another process of the run is gone. The command line prints the sentence without a traceback, exit code 1."""


def escape_text(text: str) -> str:
    """Return a text that every file and terminal takes: control signs and lone surrogates escaped, values of
    environment variables masked, and of bounded length.

    Names and messages come from data, and may be of any length and hold anything.
    """
    text = mask_values(text)
    if len(text) > MAX_DETAIL:
        text = f"{text[:MAX_DETAIL]} ... ({len(text):,} characters)"
    if text.isprintable():
        return text
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in UNPRINTABLE else c for c in text
    )


def read_first_line(problem: BaseException) -> str:
    """Return the first line of what a library said, or the name of the exception where it said nothing."""
    lines = str(problem).strip().splitlines()
    return lines[0] if lines else type(problem).__name__


def require_number(name: str, value: object, is_whole: bool = True, is_signed: bool = False) -> None:
    """Refuse an argument of a call from Python that is not a number; the command line has looked at its own.

    Args:
        is_signed: whether it may be 0 or below.

    Raises:
        UserError: naming the argument.
    """
    kind = numbers.Integral if is_whole else numbers.Real
    fits = isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
    if not (fits and (is_signed or value > 0)):  # type: ignore[operator]
        what = "a whole number" if is_whole else "a number"
        raise UserError(f"{name}: give {what}{'' if is_signed else ' above 0'}, not {value!r}")


@contextmanager
def convert_to_user_error(what: str, fix: str = "") -> Iterator[None]:
    """Turn whatever a library raises inside into one sentence.

    Used where something of the user's is opened: a source, a tokenizer, a model, a folder. Which exceptions a library
    raises for a broken file is not part of its interface, so all of them are caught; ours pass unchanged.

    Args:
        what: names the thing and what failed ("decoder.path: the tokenizer of models/x cannot be loaded").
        fix: what to do about it, put behind the reason.

    Raises:
        UserError: in place of any other exception.
    """
    try:
        yield
    except (UserError, RowError, LostProcessError):
        raise
    except Exception as problem:
        raise UserError(
            f"{what} ({escape_text(read_first_line(problem))})" + (f"; {fix}" if fix else "")
        ) from problem


@contextmanager
def prefix_user_errors(where: str) -> Iterator[None]:
    """Put the key of a config in front of the sentences of user errors that are raised inside and do not begin with it.

    Raises:
        UserError: of the same class, with the longer sentence.
    """
    try:
        yield
    except UserError as problem:
        sentence = str(problem)
        is_named = sentence.startswith((f"{where} ", f"{where}:"))
        raise type(problem)(sentence if is_named else f"{where}: {sentence}") from problem


class convert_to_row_error:  # written as a class, which is entered four times faster than a generator
    """Turn whatever is raised while one row is read, decoded or rendered into a skipped row.

    Args:
        reason: as for ``RowError``. name: the row or clip, for the person who looks for it.
        key: of the row, see ``RowError``; set on row errors that pass, too.

    Raises:
        RowError: in place of any exception that is not ours.
    """

    __slots__ = ("key", "name", "reason")

    def __init__(self, reason: str, name: str, key: str = "") -> None:
        self.reason, self.name, self.key = reason, name, key

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, RowError):
            problem.key = problem.key or self.key
        elif isinstance(problem, Exception) and not isinstance(problem, UserError | LostProcessError):
            cause = read_first_line(problem)
            is_named = cause.startswith(f"{self.name}: ")
            error = RowError(self.reason, cause if is_named else f"{self.name} ({cause})")
            error.key = self.key
            raise error from problem
