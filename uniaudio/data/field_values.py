"""Values of columns as text: what has no value, what is a list, and what names of classes are."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, NoReturn

from jinja2 import Undefined

from uniaudio.errors import RowError

MAY_END_LIST = frozenset("]}) \t\r\n")  # last characters of a text that is tried as a list
LONGEST_LIST = 100_000  # characters of a text that is tried as a list
QUOTED = r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
# as numpy writes an array of texts: no commas
ARRAY = re.compile(rf"\[\s*{QUOTED}(?:\s+{QUOTED})*\s*\]")
ARRAY_CALL = re.compile(
    r"array\((\[.*\])(?:,\s*dtype=[^()]*)?\)", re.DOTALL
)  # as numpy writes one within others
# as Python writes a tuple or a set of texts; anything else in such brackets is text
TUPLE_OR_SET = re.compile(rf"\(\s*{QUOTED}\s*,.*\)|\{{\s*{QUOTED}\s*(?:,.*)?\}}", re.DOTALL)


class ClassIndex(int):
    """The number of a class whose name is known: it is written, and compared with text, by its name.

    Everywhere else it is the number that is stored, so conditions and lists in cards work as before.
    """

    name: str

    def __new__(cls, number: int, name: str) -> ClassIndex:
        index = super().__new__(cls, number)
        index.name = name
        return index

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[type[ClassIndex], tuple[int, str]]:
        return ClassIndex, (int(self), self.name)


@dataclass(frozen=True)
class Classes:
    """The classes that a stored column may have.

    Args:
        values: all of them, in the order of their numbers. in_lists: the column holds lists of them.
    """

    values: tuple[ClassIndex, ...]
    in_lists: bool = False


class Null(Undefined):
    """A column without a value, inside a template: false, equal to none, replaced by ``default``, never text."""

    def _fail_with_undefined_error(self, *args: Any, **options: Any) -> NoReturn:
        raise RowError("missing column", f"'{self._undefined_name}' has no value")

    __str__ = __iter__ = __len__ = __contains__ = __getitem__ = _fail_with_undefined_error
    __int__ = __float__ = __lt__ = __le__ = __gt__ = __ge__ = _fail_with_undefined_error

    def __getattr__(self, name: str) -> Any:
        if name[:2] == "__":
            raise AttributeError(name)
        self._fail_with_undefined_error()

    def __bool__(self) -> bool:
        return False

    def __eq__(self, other: object) -> bool:
        return other is None or other == "" or isinstance(other, Null)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(None)


class ListValue(list[Any]):
    """A list inside a template: it can be joined, indexed and looped over, but has no text of its own."""

    def __str__(self) -> str:
        raise RowError(
            "template error", "a list is not text: write {{ NAME | join(', ') }} or use target_one_of"
        )

    __repr__ = __str__


class MappingValue(dict[Any, Any]):
    """A mapping inside a template: its keys can be named, but it has no text of its own."""

    def __str__(self) -> str:
        raise RowError(
            "template error", f"a mapping is not text: name one of its keys, {', '.join(map(str, self))}"
        )

    __repr__ = __str__


def has_no_value(value: Any) -> bool:
    """Return whether a column is null, or the number that pandas writes in its place."""
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def is_plain(value: Any) -> bool:
    """Return whether a value is nothing but text or a number, as nearly all are: ``wrap_value`` leaves it as it is."""
    kind = type(value)
    if kind is str:
        return value[-1:] not in MAY_END_LIST
    return kind is int or (kind is float and math.isfinite(value))


def parse_list(text: str) -> list[Any] | dict[Any, Any] | None:
    """Return the list that a text is the writing of: as JSON, Python or numpy write it; None for any other text.

    A mapping as Python writes it is understood too; one as JSON is left as text, for answers may be JSON.
    """
    if text[-1:] not in MAY_END_LIST:  # nearly all texts
        return None
    text = text.strip()
    if text[-1:] == ")" and len(text) <= LONGEST_LIST and (array := ARRAY_CALL.fullmatch(text)):
        text = array[1]
    if text[:1] + text[-1:] not in ("[]", "{}", "()") or len(text) > LONGEST_LIST:
        return None
    if ARRAY.fullmatch(text):  # before Python's reading, which would put neighbours together into one text
        return [ast.literal_eval(item) for item in re.findall(QUOTED, text)]
    try:
        read = json.loads(text, parse_constant=refuse_constant)
        return read if isinstance(read, list) else None
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return None
    if isinstance(value, tuple | set) and TUPLE_OR_SET.fullmatch(text):
        items = ast.literal_eval(f"[{text[1:-1]}]")  # in the order in which they are written
        return items if all(isinstance(item, str) for item in items) else None
    return value if isinstance(value, list | dict) else None


def refuse_constant(name: str) -> None:
    """Refuse ``NaN`` and ``Infinity``, which are no JSON although Python reads them.

    Raises:
        ValueError: always.
    """
    raise ValueError(name)


def wrap_value(value: Any, name: str) -> Any:
    """Return a column's value as templates see it: nothing in it can become text by mistake.

    Args:
        name: of the column, for messages.

    Raises:
        RowError: when the value is the error why the row has none.
    """
    if type(value) is str:
        listed = parse_list(value)
        return value if listed is None else wrap_value(listed, name)
    if isinstance(value, RowError):
        raise value.copy()
    if has_no_value(value):
        return Null(name=name)
    if isinstance(value, Mapping):
        return MappingValue(
            (key, item if is_plain(item) else wrap_value(item, f"{name}.{key}"))
            for key, item in value.items()
        )
    if isinstance(value, list | tuple):
        return ListValue(
            item if is_plain(item) else wrap_value(item, f"{name}[{i}]") for i, item in enumerate(value)
        )
    return value


def write_value(value: Any) -> Any:
    """Return what a template writes for a value.

    Raises:
        RowError: "missing column" for none; "template error" for a list, a mapping, true or false, or bytes.
    """
    kind = type(value)
    if kind is str:
        return value
    if kind is int:
        return str(value)
    if kind is float and math.isfinite(value):
        return str(int(value) if value.is_integer() else value)  # 3 before a gap in its table made it 3.0
    if isinstance(value, Undefined):
        str(value)  # raises
    if isinstance(value, str):
        return value
    if has_no_value(value):
        raise RowError("missing column", "a value in the text is null")
    if isinstance(value, bool):
        raise RowError(
            "template error", f"{str(value).lower()} is not text: write {{{{ 'yes' if NAME else 'no' }}}}"
        )
    if isinstance(value, float):
        return write_value(float(value))
    if isinstance(value, list | tuple | set | frozenset):
        return str(ListValue())
    if isinstance(value, Mapping):
        return str(MappingValue(value))
    if isinstance(value, bytes | bytearray | memoryview):
        raise RowError("template error", "bytes are not text")
    return str(value)


@dataclass(frozen=True)
class FirstOf:
    """A column that takes the value of the first of several others that has one.

    Args:
        ordered: the columns, in order. each: whether a list makes a row of every item. where: file and key, for errors.
    """

    ordered: tuple[str, ...]
    each: bool
    where: str

    @property
    def names(self) -> frozenset[str]:
        """The columns of which one is needed."""
        return frozenset(self.ordered)

    def list_missing(self, stored: Set[str]) -> list[str]:
        """Return the first column where rows with the stored columns have none of them."""
        return [] if self.names & stored else [self.ordered[0]]

    def render(self, fields: Mapping[str, Any]) -> Any:
        """Return the value: a text, or a list; numbers, true and false as Python writes them.

        An empty list and a mapping count as no value.

        Raises:
            RowError: where none of the columns has a value, or the first that is there is an error.
        """
        for name in self.ordered:
            value = fields.get(name)
            if isinstance(value, RowError):
                raise value.copy()
            if has_no_value(value) or isinstance(value, Mapping) or value in ([], ()):
                continue
            return value if isinstance(value, str | list | tuple | ClassIndex) else str(value)
        listed = ", ".join(sorted(map(str, fields)))
        raise RowError(
            "missing column", f"{self.where} needs one of {', '.join(self.ordered)}; columns: {listed}"
        )

    def list_items(self, fields: Mapping[str, Any]) -> list[Any]:
        """Return the values of the rows that a row becomes: the items of a list, or the one value.

        Raises:
            RowError: as ``render``.
        """
        value = self.render(fields)
        if isinstance(value, str):
            parsed = parse_list(value)
            value = parsed if isinstance(parsed, list) else value
        items = list(value) if isinstance(value, list | tuple) else [value]
        return [item for item in items if not has_no_value(item)]
