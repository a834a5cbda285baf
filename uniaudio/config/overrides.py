"""Overrides of a config, ``key=value`` of the command line or of Python: laid over what its files say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from uniaudio.config.records import Strict
from uniaudio.config.strict_yaml import parse_override_value
from uniaudio.config.validation_errors import explain_unknown_key
from uniaudio.errors import UserError

Overrides = Sequence[str] | Mapping[str, Any]


def require_overrides(overrides: object) -> None:
    """Refuse overrides from Python that are neither a list of texts nor a mapping.

    Raises:
        UserError: saying what to give.
    """
    if isinstance(overrides, str):
        raise UserError(f"overrides: give a list or a mapping, such as ['{overrides}']")
    if not isinstance(overrides, Sequence | Mapping) or not all(isinstance(each, str) for each in overrides):
        raise UserError(f"overrides: give a list of texts or a mapping, not {overrides!r}")


def apply_overrides(data: dict[str, Any], overrides: Overrides, kind: type[Strict]) -> None:
    """Set ``stages.0.steps=10`` and so on in place; the schema checks the result.

    Args:
        overrides: texts ``key.sub=value``, whose values are YAML, or a mapping of such keys to values.
        kind: the record that the data will be checked against.

    Raises:
        UserError: when one is not ``key=value``, or leads through something that has no parts.
    """
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            set_value(data, str(key), value, f"{key}={value}", kind)
        return
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"override '{override}': write key.sub=value")
        set_value(data, key, parse_override_value(text), override, kind)


def set_value(data: dict[str, Any], key: str, value: Any, override: str, kind: type[Strict]) -> None:
    """Set the value of a dotted key in place, see ``apply_overrides``.

    Args:
        override: how messages call it.
    """
    parts = key.split(".")
    if parts[0] not in kind.model_fields:
        hint = explain_unknown_key(kind, kind, parts[0], "", kind.usual_names)
        raise UserError(f"override '{override}': unknown key{hint}")
    place: Any = data
    for depth, part in enumerate(parts[:-1], 1):
        index = find_position(place, part, override)
        if isinstance(place, dict) and place.get(index) is None:
            place[index] = {}  # a part that was left to its defaults
        place = place[index]
        if not isinstance(place, (dict, list)):
            raise UserError(f"override '{override}': {'.'.join(parts[:depth])} is a value and has no keys")
    place[find_position(place, parts[-1], override)] = value


def find_position(place: dict[str, Any] | list[Any], part: str, override: str) -> Any:
    """Return what ``part`` names in a mapping (itself) or in a list (a number)."""
    if isinstance(place, dict):
        return part
    if not part.isdecimal() or int(part) >= len(place):
        hint = "" if part.isdecimal() else "; items of a list are numbered from 0, as in stages.0.steps"
        positions = f"positions 0 to {len(place) - 1}" if len(place) > 1 else "only position 0"
        held = f"has {positions}" if place else "is empty"
        raise UserError(f"override '{override}': there is no item {part}, the list {held}{hint}")
    return int(part)
