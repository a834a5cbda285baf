"""Layers of a config: the file that its ``base`` names, its own keys, overrides of the command line or of Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniaudio.config.nearest import suggest_name
from uniaudio.config.search_paths import Kind, find_file
from uniaudio.config.strict_yaml import load_yaml, parse_override_value
from uniaudio.errors import UserError


def read_layers(path: Path, kind: Kind, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file over its base, that one over its own base, and so on.

    Mappings are merged, everything else (lists too, and mappings of another ``kind``) is replaced.

    Raises:
        UserError: when a base does not exist or the bases go round in a circle.
    """
    if path.resolve() in seen:
        raise UserError(f"{path}: `base` goes round in a circle")
    return lay_over_base(load_yaml(path), path, kind, seen)


def lay_over_base(
    data: dict[str, Any], path: Path, kind: Kind, seen: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """Return the keys of a file over those of its ``base``, see ``read_layers``.

    Args:
        data: the content of the file. path: of the file, near which its base is looked for.
    """
    data = dict(data)
    base = data.pop("base", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise UserError(f"{path}: base: must be the name or path of one file, got {base!r}")
    parent = find_file(kind, base, path.parent)
    return merge_mappings(read_layers(parent, kind, (*seen, path.resolve())), data)


def merge_mappings(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``override`` laid over it.

    A mapping that names another ``kind`` replaces the base's: the settings of one kind mean nothing to another.
    """
    if "kind" in override and override["kind"] != base.get("kind", override["kind"]):
        return dict(override)
    result = dict(base)
    for key, value in override.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merge_mappings(result[key], value) if both else value
    return result


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


def apply_overrides(data: dict[str, Any], overrides: Overrides, known_first: Sequence[str]) -> None:
    """Set ``stages.0.steps=10`` and so on in place; the schema checks the result.

    Args:
        overrides: texts ``key.sub=value``, whose values are YAML, or a mapping of such keys to values.
        known_first: the keys that may stand first.

    Raises:
        UserError: when one is not ``key=value``, or leads through something that has no parts.
    """
    if isinstance(overrides, Mapping):
        for key, value in overrides.items():
            set_value(data, str(key), value, f"{key}={value}", known_first)
        return
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"override '{override}': write key.sub=value")
        set_value(data, key, parse_override_value(text), override, known_first)


def set_value(data: dict[str, Any], key: str, value: Any, override: str, known_first: Sequence[str]) -> None:
    """Set the value of a dotted key in place, see ``apply_overrides``.

    Args:
        override: how messages call it.
    """
    parts = key.split(".")
    if parts[0] not in known_first:
        raise UserError(f"override '{override}': unknown key{suggest_name(parts[0], known_first)}")
    place: Any = data
    for depth, part in enumerate(parts[:-1], 1):
        index = find_position(place, part, override)
        if isinstance(place, dict) and place.get(index) is None:
            place[index] = {}  # a part that was left to its defaults
        place = place[index]
        if not isinstance(place, (dict, list)):
            raise UserError(f"override '{override}': {'.'.join(parts[:depth])} is a value, it has no parts")
    place[find_position(place, parts[-1], override)] = value


def find_position(place: dict[str, Any] | list[Any], part: str, override: str) -> Any:
    """Return what ``part`` names in a mapping (itself) or in a list (a number)."""
    if isinstance(place, dict):
        return part
    if not part.isdecimal() or int(part) >= len(place):
        raise UserError(f"override '{override}': {part} is not one of the positions 0 to {len(place) - 1}")
    return int(part)
