"""Strict records, and one sentence for whatever does not fit them."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from uniaudio.config.nearest import suggest_name
from uniaudio.errors import UserError


class Strict(BaseModel):
    """A frozen record that refuses keys it does not know and values of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Record = TypeVar("Record", bound=Strict)


def list_texts(value: Any) -> Any:
    """Return a text alone or a list as a tuple; anything else as it is, for the record to check."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


OneOrMore = Annotated[
    tuple[str, ...], BeforeValidator(list_texts, json_schema_input_type=str | tuple[str, ...])
]


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
    key = ".".join(str(part) for part in drop_kinds(kind, error["loc"])) or "the file"
    if error["type"] == "extra_forbidden":
        known = list_known_keys(kind, error["loc"][:-1])
        return f"{key}: unknown key{suggest_name(str(error['loc'][-1]), known)}; known: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{key}: is required"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):  # records chosen by their `kind`
        choices = re.findall(r"'([^']*)'", error["ctx"].get("expected_tags", ""))
        given = error["ctx"].get("tag")
        if given is None:
            return f"{key}.kind: is required"
        return f"{key}.kind: '{given}' is not one of {', '.join(choices)}{suggest_name(str(given), choices)}"
    if error["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        near = suggest_name(str(error["input"]), choices)
        return f"{key}: {error['input']!r} is not one of {', '.join(choices)}{near}"
    message = error["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if error["type"] == "value_error":
        return f"{key}: {message}" if error["loc"] else message
    return f"{key}: {message}, got {error['input']!r}"


def drop_kinds(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[int | str]:
    """Return the path of a key as it stands in the file: without the kinds that chose between records."""
    record: Any = kind
    annotation: Any = kind
    kept = []
    for part in path:
        fields = getattr(record, "model_fields", {})
        chosen = None if part in fields else choose_kind(annotation, part)
        if chosen is not None:
            record = chosen
            continue
        kept.append(part)
        if part in fields:
            annotation = fields[part].annotation
            record = find_record(annotation) or record
    return kept


def list_known_keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the record that ``path`` leads to."""
    record: Any = kind
    annotation: Any = kind
    for part in path:
        fields = getattr(record, "model_fields", {})
        if part in fields:
            annotation = fields[part].annotation
            record = find_record(annotation) or record
        else:  # an index or a name in a mapping, or the kind that chooses between records
            record = choose_kind(annotation, part) or record
    return list(getattr(record, "model_fields", {}))


def choose_kind(annotation: Any, tag: int | str) -> type[BaseModel] | None:
    """Return the record inside ``A | B | ...`` whose ``kind`` may be ``tag``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get("kind")
        return annotation if field is not None and tag in get_args(field.annotation) else None
    return next((record for part in get_args(annotation) if (record := choose_kind(part, tag))), None)


def find_record(annotation: Any) -> type[BaseModel] | None:
    """Return the record inside ``X``, ``X | None``, ``list[X]``, ``tuple[X, ...]`` or ``dict[str, X]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((record for part in get_args(annotation) if (record := find_record(part))), None)
