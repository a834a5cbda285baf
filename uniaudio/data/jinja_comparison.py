"""Comparisons in conditions and templates: text and numbers are compared as what they mean, or refused."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment, Template, TemplateSyntaxError, Undefined, nodes
from jinja2.environment import TemplateExpression
from jinja2.parser import Parser

from uniaudio.data.field_values import ClassIndex, has_no_value

NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
TRUTH = {"true": True, "false": False}
UNCLEAR = {"no", "n", "f", "off"}  # texts that are true as all texts are, and nearly always mean the opposite
# names of filters that no template can write
COMPARE, IS_TRUE, IS_CLEARLY_TRUE = "compare ", "is true", "is clearly true"
ORDERS: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt, "lteq": operator.le, "gt": operator.gt, "gteq": operator.ge,
}  # fmt: skip
TESTS = {
    "eq": ("eq", "equalto", "=="),
    "ne": ("ne", "!="),
    "lt": ("lt", "lessthan", "<"),
    "lteq": ("le", "<="),
    "gt": ("gt", "greaterthan", ">"),
    "gteq": ("ge", ">="),
    "in": ("in",),
}


def compare_values(left: Any, sign: str, right: Any) -> bool:
    """Compare two values of a condition.

    Text beside a number is compared as a number, text beside true or false as these words; a column without a value
    (none, an empty cell) equals no number and is neither smaller nor larger than anything.

    Args:
        sign: as Jinja names it: eq, ne, lt, lteq, gt, gteq, in, notin.

    Raises:
        ValueError: for text that is not a number beside a number. TypeError: for values that have no order.
    """
    if sign in ("in", "notin"):
        if isinstance(right, Mapping | list | tuple | set | frozenset):
            within = is_one_of(left, list(right))
        else:
            within = left in right
        return within == (sign == "in")
    if sign in ("eq", "ne"):
        return is_equal(left, right) == (sign == "eq")
    if has_no_value(left) or has_no_value(right) or is_empty_beside_number(left, right):
        return False
    left, right = match_types(left, right)
    return bool(ORDERS[sign](left, right))


def is_one_of(value: Any, items: list[Any]) -> bool:
    """Return whether a value equals one of several; those of another type only matter where all are."""
    mismatch: ValueError | None = None
    comparable = not items
    for item in items:
        try:
            if is_equal(value, item):
                return True
            comparable = True
        except ValueError as problem:
            mismatch = problem
    if mismatch is not None and not comparable:
        raise mismatch
    return False


def is_equal(left: Any, right: Any) -> bool:
    if left is None or right is None:
        return bool(left == right)
    if is_empty_beside_number(left, right):
        return False
    left, right = match_types(left, right)
    return bool(left == right)


def is_empty_beside_number(left: Any, right: Any) -> bool:
    return any(
        isinstance(one, str) and not one.strip() and isinstance(other, int | float)
        for one, other in ((left, right), (right, left))
    )


def match_types(left: Any, right: Any) -> tuple[Any, Any]:
    """Return both values as numbers or truths where one is and the other is its writing."""
    if isinstance(left, str) and isinstance(right, int | float):
        return match_value_type(left, right)
    if isinstance(right, str) and isinstance(left, int | float):
        return match_value_type(right, left)[::-1]
    return left, right


def match_value_type(text: str, other: float) -> tuple[Any, Any]:
    """Return a text as what the other value is, and the other value."""
    if isinstance(other, ClassIndex):
        return (
            (text, str(other)) if NUMBER.fullmatch(text.strip()) is None else (parse_number(text), int(other))
        )
    if isinstance(other, bool) and text.strip().lower() in TRUTH:
        return TRUTH[text.strip().lower()], other
    if NUMBER.fullmatch(text.strip()) is None:
        kind = str(other).lower() if isinstance(other, bool) else f"the number {other}"
        raise ValueError(
            f"the text {text[:100]!r} is compared with {kind}; write both as text or both as numbers"
        )
    return parse_number(text), other


def parse_number(text: str) -> float:
    digits = text.strip().lstrip("+-")
    return int(text) if digits.isdigit() else float(text)


def is_true(value: Any) -> bool:
    """Return whether a condition that is one value holds: the texts ``false`` and ``0`` do not."""
    if isinstance(value, Undefined):
        return bool(value)
    if isinstance(value, str):
        text = value.strip()
        return TRUTH.get(text.lower(), bool(parse_number(text)) if NUMBER.fullmatch(text) else bool(text))
    return not has_no_value(value) and bool(value)


def is_clearly_true(value: Any) -> bool:
    """Return whether a condition that is one value holds, see ``is_true``.

    Raises:
        ValueError: for a text that says no, which would hold as any text does.
    """
    if isinstance(value, str) and value.strip().lower() in UNCLEAR:
        raise ValueError(
            f"the text {value!r} counts as true, as every text does; compare it, as in COLUMN == 'yes'"
        )
    return is_true(value)


def compare_chain(first: Any, *rest: Any) -> bool:
    """Work out ``a < b <= c``: (a, "lt", b, "lteq", c)."""
    left = first
    for sign, right in zip(rest[::2], rest[1::2], strict=True):
        if not compare_values(left, sign, right):
            return False
        left = right
    return True


def prepare_comparisons(environment: Environment) -> None:
    """Let the tests of an environment (``x is eq 5``, ``select('gt', 3)``) compare as ``compare_values`` does.

    What comparisons are rewritten to are filters, for the sandbox looks at every call of a function.
    """
    environment.filters |= {COMPARE: compare_chain, IS_TRUE: is_true, IS_CLEARLY_TRUE: is_clearly_true}
    for sign, names in TESTS.items():
        for name in names:
            environment.tests[name] = make_test(sign)


def make_test(sign: str) -> Callable[[Any, Any], bool]:
    def test(left: Any, right: Any) -> bool:
        return compare_values(left, sign, right)

    return test


def compile_text(environment: Environment, source: str) -> Template:
    """Compile a text whose comparisons are those of ``compare_values``.

    Raises:
        TemplateSyntaxError: when it is not well-formed.
    """
    return environment.from_string(rewrite_value(environment.parse(source)))


def compile_condition(environment: Environment, source: str) -> TemplateExpression:
    """Compile an expression whose comparisons are those of ``compare_values``, and of which only the truth counts.

    Raises:
        TemplateSyntaxError: when it is no expression.
    """
    parser = Parser(environment, source, state="variable")
    expression = parser.parse_expression()
    if not parser.stream.eos:
        raise TemplateSyntaxError("chunk after expression", parser.stream.current.lineno)
    expression.set_environment(environment)
    body: list[nodes.Node] = [
        nodes.Assign(nodes.Name("result", "store"), rewrite_truth(expression, IS_CLEARLY_TRUE), lineno=1)
    ]
    return TemplateExpression(
        environment.from_string(nodes.Template(body, lineno=1)), undefined_to_none=False
    )


def rewrite_truth(node: Any, truth: str = IS_TRUE) -> Any:
    """Rewrite an expression of which only the truth counts.

    Args:
        truth: name of the filter that tells the truth of a value.
    """
    if isinstance(node, nodes.And | nodes.Or):
        return type(node)(
            rewrite_truth(node.left, truth), rewrite_truth(node.right, truth), lineno=node.lineno
        )
    if isinstance(node, nodes.Not):
        return nodes.Not(rewrite_truth(node.node, truth), lineno=node.lineno)
    if isinstance(node, nodes.Compare | nodes.Test):
        return rewrite_value(node)
    return nodes.Filter(rewrite_value(node), truth, [], [], None, None, lineno=node.lineno)


def rewrite_value(node: Any) -> Any:
    """Rewrite the comparisons inside a tree."""
    for field, inside in list(node.iter_fields()):
        if isinstance(inside, list):
            setattr(
                node,
                field,
                [rewrite_value(part) if isinstance(part, nodes.Node) else part for part in inside],
            )
        elif isinstance(inside, nodes.Node):
            setattr(node, field, rewrite_truth(inside) if field == "test" else rewrite_value(inside))
    if not isinstance(node, nodes.Compare):
        return node
    operands = [part for op in node.ops for part in (nodes.Const(op.op, lineno=node.lineno), op.expr)]
    return nodes.Filter(node.expr, COMPARE, operands, [], None, None, lineno=node.lineno)
