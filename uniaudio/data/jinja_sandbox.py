"""Jinja's sandbox with a budget for each rendering (``jinja_budget.py``): filters, methods, operators and loops
count what they make."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from uniaudio.data import jinja_budget
from uniaudio.data.field_values import MappingValue
from uniaudio.data.jinja_budget import (
    BUDGET,
    CHECKS,
    CONTAINERS,
    WIDE_BRACES,
    WIDTH,
    TemplateLimitError,
    allow_joined,
    check_growth,
    concat_output,
    concat_values,
    count_result,
    count_steps,
    measure_size,
)

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
            raise TemplateLimitError(f"format: a width over {WIDTH:,}, or a width given as a value")
        return wrapped

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(Limiter().visit(source), *args, **kwargs)


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
    """Return a call of a function of ``jinja_budget.py``."""
    called = nodes.Call(nodes.ImportedName(f"{jinja_budget.__name__}.{name}"), arguments, [], None, None)
    called.set_lineno(line)
    return called


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
