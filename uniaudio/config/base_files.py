"""A config, recipe, card or suite over the file that its ``base`` names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniaudio.config.search_paths import Kind, find_file
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.errors import UserError


def read_layers(path: Path, kind: Kind, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read a file over its base, that one over its own base, and so on.

    Mappings are merged, everything else (lists too, and mappings of another ``kind``) is replaced.

    Raises:
        UserError: when a base does not exist or the bases go round in a circle.
    """
    if path.resolve() in seen:
        raise UserError(f"{path}: `base` files inherit from each other in a cycle")
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
