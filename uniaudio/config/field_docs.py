"""What the records of the config files say of themselves: their fields' docstrings, and where in a file they stand."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

from pydantic import BaseModel

from uniaudio.config.records import Strict
from uniaudio.config.validation_errors import iterate_inner_records

READ_BY = "Read by: "


@dataclass(frozen=True)
class FieldText:
    """The documentation of a record or of one of its fields.

    Args:
        text: what it means. read_by: the commands that read it; empty where nothing is said.
    """

    text: str
    read_by: tuple[str, ...]


def parse_text(docstring: str) -> FieldText:
    """Split a docstring into its text and the commands of its last line, ``Read by: train, check.``"""
    text, _, commands = " ".join(docstring.split()).partition(READ_BY)
    return FieldText(text.strip(), tuple(commands.rstrip(".").split(", ")) if commands else ())


@cache
def list_declared_fields(record: type[Strict]) -> dict[str, FieldText | None]:
    """Return the fields that a record declares itself, in order, with the docstrings below them (None: it has none)."""
    body = ast.parse(textwrap.dedent(inspect.getsource(record))).body[0].body  # type: ignore[attr-defined]
    texts: dict[str, FieldText | None] = {}
    for statement, following in pairwise([*body, ast.Pass()]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
            texts[statement.target.id] = parse_text(str(following.value.value)) if is_text else None
    return {name: text for name, text in texts.items() if name in record.model_fields}


def document_record(record: type[BaseModel]) -> FieldText:
    """Return the documentation of a record; the commands are those of the nearest record it derives from that says."""
    text = parse_text(record.__doc__ or "")
    commands = (parse_text(parent.__doc__ or "").read_by for parent in list_lineage(record))
    return FieldText(text.text, next((names for names in commands if names), ()))


def document_fields(record: type[Strict]) -> dict[str, FieldText]:
    """Return the documentation of all fields of a record, inherited ones included.

    Where a field does not name the commands that read it, they are those of the record in it, else of its own record.

    Raises:
        TypeError: for a field without a docstring.
    """
    texts: dict[str, FieldText] = {}
    for parent in reversed(list_lineage(record)):
        usual = document_record(parent).read_by
        for name, text in list_declared_fields(parent).items():
            if text is None:
                raise TypeError(f"{parent.__name__}.{name} has no docstring below it")
            inside = [each for each, _ in iterate_inner_records(record.model_fields[name].annotation, "")]
            commands = text.read_by or (document_record(inside[0]).read_by if inside else usual)
            texts[name] = FieldText(text.text, commands)
    return texts


def list_lineage(record: type[BaseModel]) -> list[type[Strict]]:
    """Return a record and the records it derives from, itself first."""
    return [parent for parent in record.__mro__ if issubclass(parent, Strict) and parent is not Strict]


def find_record_places(root: type[Strict]) -> dict[type[Strict], list[str]]:
    """Return all records of a file with the keys where they stand, in the order of the file.

    Records that others derive from stand before the first of those.
    """
    places: dict[type[Strict], list[str]] = {}

    def visit(record: type[BaseModel], place: str) -> None:
        for each in reversed(list_lineage(record)):
            known = places.setdefault(each, [])
            if place not in known:
                known.append(place)
        for name, field in record.model_fields.items():
            for inner, inner_place in iterate_inner_records(field.annotation, f"{place}.{name}".lstrip(".")):
                visit(inner, inner_place)

    visit(root, "")
    return places


def list_reachable_records(root: type[Strict]) -> list[type[Strict]]:
    """Return the records that values of a file can be: those of ``find_record_places`` that are no mere parents."""
    places = list(find_record_places(root))
    return [
        record
        for record in places
        if root is record or not any(record in list_lineage(o)[1:] for o in places)
    ]
