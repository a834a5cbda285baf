"""Strict records, the base of all config files."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from uniaudio.config.usual_names import UsualNames
from uniaudio.config.validation_errors import explain
from uniaudio.errors import UserError


class Strict(BaseModel):
    """A frozen record that refuses keys it does not know and values of another type.

    The record of a kind of file has the names that are usual elsewhere for its keys in ``usual_names``.
    """

    usual_names: ClassVar[UsualNames | None] = None
    model_config = ConfigDict(extra="forbid", frozen=True)


Record = TypeVar("Record", bound=Strict)


def list_texts(value: Any) -> Any:
    """Return a text alone or a list as a tuple; anything else as it is, for the record to check."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


def check_expression(pattern: str) -> str:
    """Refuse a text that is not a regular expression; for validators of fields that hold some."""
    try:
        re.compile(pattern)
    except re.error as problem:
        raise ValueError(f"'{pattern}' is not a regular expression ({problem})") from problem
    return pattern


OneOrMore = Annotated[
    tuple[str, ...], BeforeValidator(list_texts, json_schema_input_type=str | tuple[str, ...])
]


def check_seed(seed: int) -> int:
    """Refuse a seed that torch's generators cannot take."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError("a seed is a whole number of 64 bits; give a smaller one")
    return seed


Seed = Annotated[int, AfterValidator(check_seed)]


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
        raise UserError(f"{where}: {explain(kind, problem, data, kind.usual_names)}") from problem
