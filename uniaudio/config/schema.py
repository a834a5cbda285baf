"""Strict records, and one sentence for whatever does not fit them."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from uniaudio.config.nearest import did_you_mean
from uniaudio.errors import UserError


class Strict(BaseModel):
    """A frozen record that refuses keys it does not know and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Record = TypeVar("Record", bound=Strict)


def build(kind: type[Record], data: Any, where: str) -> Record:
    """Check ``data`` against a record.

    Args:
        where: the file, named first in the message.

    Raises:
        UserError: with the path of the key and the nearest valid key or the value and what was expected.
    """
    try:
        # As JSON: types are strict, so that text never becomes a number, yet lists may become tuples.
        return kind.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as problem:
        raise UserError(f"{where}: {explain(kind, problem)}") from problem


def explain(kind: type[BaseModel], problem: ValidationError) -> str:
    """Put the first error into one sentence, unknown keys first: they explain missing ones."""
    errors = problem.errors()
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in error["loc"]) or "the file"
    if error["type"] == "extra_forbidden":
        known = known_keys(kind, error["loc"][:-1])
        return f"{key}: unknown key{did_you_mean(str(error['loc'][-1]), known)}; known: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{key}: is required"
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        near = did_you_mean(str(error["input"]), choices)
        return f"{key}: {error['input']!r} is not one of {', '.join(choices)}{near}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return (
        f"{key}: {message}" if error["type"] == "value_error" else f"{key}: {message}, got {error['input']!r}"
    )


def known_keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the record that ``path`` leads to."""
    record: Any = kind
    for part in path:
        fields = getattr(record, "model_fields", {})
        annotation = fields[part].annotation if part in fields else record
        record = first_record(annotation) or record
    return list(getattr(record, "model_fields", {}))


def first_record(annotation: Any) -> type[BaseModel] | None:
    """Return the record inside ``X``, ``X | None``, ``list[X]``, ``tuple[X, ...]`` or ``dict[str, X]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := first_record(part))), None)
