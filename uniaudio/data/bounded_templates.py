"""Templates that cannot make much: those are rendered without counting (``template_budget.py``), and are nearly all."""

from __future__ import annotations

from jinja2 import nodes

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
