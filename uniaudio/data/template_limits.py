"""Bounds on what one rendering of a template may do: steps of loops, calls, characters and time.

Jinja's sandbox keeps a template from reaching anything; it does not keep it from multiplying. Here every way in which a
value can grow (``*``, ``+``, ``~``, ``**``, ``%``, filters, methods, macros, loops) is counted against one budget a
rendering, before the value is made where its size is known before.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sized
from functools import wraps
from itertools import islice
from typing import Any

from jinja2 import TemplateRuntimeError, nodes
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from uniaudio.data.field_values import MappingValue

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
BOUNDED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr, nodes.Getitem,
    nodes.Slice, nodes.If, nodes.CondExpr, nodes.And, nodes.Or, nodes.Not, nodes.Compare, nodes.Operand, nodes.Test,
    nodes.Filter, nodes.Call, nodes.Add, nodes.Sub, nodes.Div, nodes.FloorDiv, nodes.Neg, nodes.Concat, nodes.List,
    nodes.Tuple, nodes.Keyword,
)  # fmt: skip
BOUNDED_FILTERS = frozenset(
    {"abs", "capitalize", "count", "d", "default", "first", "float", "int", "join", "last", "length", "list", "lower",
     "max", "min", "round", "sort", "string", "title", "trim", "unique", "unit_hash",
     "upper"}
)  # fmt: skip
BOUNDED_METHODS = frozenset(
    {"capitalize", "casefold", "count", "endswith", "find", "get", "index", "isdigit", "lower", "lstrip",
     "removeprefix", "removesuffix", "rstrip", "split", "splitlines", "startswith", "strip", "title", "upper"}
)  # fmt: skip
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
        if self.size > SIZE:
            raise TemplateLimitError(f"the template makes more than {SIZE:,} characters")
        if time.monotonic() > self.deadline:
            raise TemplateLimitError(f"the template takes more than {SECONDS:g} s")

    def allow(self, size: int) -> None:
        """Refuse a value of so many characters before it is made; it is counted when it is there.

        Raises:
            TemplateLimitError: when that would be too many.
        """
        if self.size + size > SIZE:
            raise TemplateLimitError(f"the template makes more than {SIZE:,} characters")


BUDGET = RenderBudget()


def measure_size(value: Any, most: int = SIZE) -> int:
    """Return the characters and items of a value, those inside lists included, or some number over ``most``."""
    if isinstance(value, str | bytes):
        return len(value)
    if not isinstance(value, CONTAINERS):
        return 1
    total = 0
    waiting: list[Any] = [value]
    while waiting and total <= most:
        inside = waiting.pop()
        for item in inside.items() if isinstance(inside, dict) else inside:
            if isinstance(item, CONTAINERS):
                waiting.append(item)
                total += 1
            else:
                total += len(item) if isinstance(item, str | bytes) else 1
            if total > most:
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
    kept = list(pieces) if isinstance(pieces, list) else []
    if kept:
        BUDGET.allow(sum(map(len, kept)))
        return "".join(kept)
    size, rest = 0, iter(pieces)
    while some := list(islice(rest, PIECES)):
        size += sum(map(len, some))
        if size > SIZE:
            raise TemplateLimitError(f"the template makes more than {SIZE:,} characters")
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
        raise TemplateLimitError("sum: adds numbers alone; use join for texts")


def check_format(text: Any, given: tuple[Any, ...]) -> None:
    """Look at ``text % given``.

    Raises:
        TemplateLimitError: for wide fields and arguments that are too large.
    """
    if WIDE_PERCENT.search(str(text)):
        raise TemplateLimitError(f"format: a width over {WIDTH:,}, or one given as a value")
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


class PlainEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox for templates that ``is_bounded`` knows; only the size of their output is looked at."""

    concat = staticmethod(concat_output)

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return an attribute, or the value of a mapping under its name: for these without a failed look-up before."""
        if type(obj) is MappingValue and attribute in obj and not hasattr(dict, attribute):
            return obj[attribute]
        return super().getattr(obj, attribute)


class LimitedEnvironment(PlainEnvironment):
    """Jinja's sandbox with a budget for each rendering; ``BUDGET.begin()`` starts one."""

    intercepted_binops = frozenset(CHECKS)

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.uncounted = frozenset((count_steps, concat_values, count_result))  # they count for themselves
        for name in ("lipsum", "cycler", "joiner"):  # for web pages; the first draws at random
            del self.globals[name]

    def limit_filters(self) -> None:
        """Count what the filters do; called when all of them are there."""
        for name, function in self.filters.items():
            self.filters[name] = limit_filter(name, function)
        for name, function in self.tests.items():
            self.tests[name] = limit_test(function)  # type: ignore[arg-type]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Work out an operator that can make large values."""
        CHECKS[operator](left, right)
        return count_result(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function, method or macro."""
        if function in self.uncounted:
            return super().call(context, function, *args, **kwargs)
        BUDGET.spend(1, 0)
        BUDGET.allow(sum(measure_size(one) for one in args if isinstance(one, CONTAINERS)))
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str | bytes | int):
            name = function.__name__
            if name == "join" and args:
                args = (allow_joined(args[0], owner), *args[1:])
            else:
                check_growth("" if name == "format" else name, owner, args, kwargs)
        return count_result(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Refuse wide fields in ``text.format(...)``."""
        wrapped = super().wrap_str_format(value)
        if wrapped is not None and WIDE_BRACES.search(value.__self__):
            raise TemplateLimitError(f"format: a width over {WIDTH:,}, or one given as a value")
        return wrapped

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(Limiter().visit(source), *args, **kwargs)


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


def limit_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that counts what it makes."""
    first = 1 if hasattr(function, "jinja_pass_arg") else 0  # the position of the value

    @wraps(function)
    def call_within_limits(*args: Any, **options: Any) -> Any:
        BUDGET.spend(1, 0)
        if name == "join":
            args, options = list_to_join(args, options)
        else:
            check_growth(name, args[first], args[first + 1 :], options)
        return count_result(function(*args, **options))

    return call_within_limits


def limit_test(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a test that looks at the size of lists before it compares them."""

    @wraps(function)
    def call_within_limits(*args: Any) -> Any:
        BUDGET.spend(1, sum(measure_size(one) for one in args if isinstance(one, CONTAINERS)))
        return function(*args)

    return call_within_limits


def list_to_join(args: tuple[Any, ...], options: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of ``join`` with its values, and the attribute of each, worked out."""
    context, values, *rest = args
    separator = rest[0] if rest else options.get("d", "")
    attribute = rest[1] if len(rest) > 1 else options.get("attribute")
    if attribute is not None:
        values = map(make_attrgetter(context.environment, attribute), values)
    return (context, allow_joined(values, separator), separator), {}


def is_bounded(tree: nodes.Node) -> bool:
    """Return whether a template cannot make more than a few times what its row and its own text hold.

    Such templates, nearly all there are, are rendered without counting. They have no variables, macros, products or
    powers, only filters and methods that are listed, and loops that write what is in one column.
    """
    return all(map(is_bounded_node, [tree, *tree.find_all(nodes.Node)]))


def is_bounded_node(node: nodes.Node) -> bool:
    """Return whether one node of a template makes no more than what its parts hold."""
    if isinstance(node, nodes.For):
        return is_plain_loop(node)
    if isinstance(node, nodes.Filter):
        return node.name in BOUNDED_FILTERS or is_small_replace(node) or is_attribute_map(node)
    if isinstance(node, nodes.Call):
        return isinstance(node.node, nodes.Getattr) and node.node.attr in BOUNDED_METHODS
    return isinstance(node, BOUNDED)


def is_plain_loop(node: nodes.For) -> bool:
    """Return whether a loop goes through one column and works out nothing; ``concat_output`` bounds what it writes."""
    costly = (
        nodes.For,
        nodes.Filter,
        nodes.Call,
        nodes.Concat,
        nodes.List,
        nodes.Tuple,
        nodes.Compare,
        nodes.Test,
    )
    inside = [part for child in node.body for part in child.find_all(costly)]
    return isinstance(node.iter, nodes.Name) and not node.recursive and not inside


def is_small_replace(node: nodes.Filter) -> bool:
    """Return whether this is ``replace`` of a constant text by another one that is not longer."""
    if node.name != "replace" or len(node.args) != 2 or node.kwargs:
        return False
    old, new = node.args
    if not (isinstance(old, nodes.Const) and isinstance(new, nodes.Const)):
        return False
    return len(str(old.value)) > 0 and len(str(new.value)) <= max(len(str(old.value)), 1)


def is_attribute_map(node: nodes.Filter) -> bool:
    """Return whether this is ``map`` that takes one attribute of each item, which calls no other filter."""
    return node.name == "map" and not node.args and [option.key for option in node.kwargs] == ["attribute"]


class Limiter(NodeTransformer):
    """Puts the counting into a parsed template: around loops and lists that are written down, and in place of ``~``."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = call_of("count_steps", [node.iter], node.lineno)
        return node

    def visit_List(self, node: nodes.List | nodes.Tuple | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        parts = [
            part
            for item in node.items
            for part in ((item.key, item.value) if isinstance(item, nodes.Pair) else (item,))
        ]
        if getattr(node, "ctx", "load") != "load" or all(isinstance(part, nodes.Const) for part in parts):
            return node
        return call_of("count_result", [node], node.lineno)

    visit_Tuple = visit_Dict = visit_List

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return call_of("concat_values", node.nodes, node.lineno)


def call_of(name: str, arguments: list[Any], line: int) -> nodes.Call:
    """Return a call of a function of this module."""
    called = nodes.Call(nodes.ImportedName(f"{__name__}.{name}"), arguments, [], None, None)
    called.set_lineno(line)
    return called
