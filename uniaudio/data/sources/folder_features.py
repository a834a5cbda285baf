"""Features that a dataset's own files state beside its tables: README.md and dataset_infos.json in the Hub's layout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson

from uniaudio.config.strict_yaml import parse
from uniaudio.config.text_files import read_text_file
from uniaudio.errors import UserError

README, INFOS = "README.md", "dataset_infos.json"
ABOVE = 2  # folders over that of a table in which the files are looked for, as of data/CONFIG/train.parquet
LISTS = ("list", "large_list", "sequence")


@lru_cache(maxsize=64)
def read_folder_features(folder: Path) -> dict[str, Any]:
    """Return the features of a folder of tables, as `datasets` writes them as JSON; none where no file states any.

    Of several configurations those count that the folder is named after, or the only one.
    """
    for place in (folder, *folder.parents[:ABOVE]):
        stated = read_infos(place / INFOS) or read_readme(place / README)
        if stated:
            named = [name for name in stated if name == folder.name]
            chosen = named or (list(stated) if len(stated) == 1 else [])
            return stated[chosen[0]] if chosen else {}
    return {}


def read_infos(file: Path) -> dict[str, dict[str, Any]]:
    """Return the features of every configuration that a ``dataset_infos.json`` states."""
    if not file.is_file():
        return {}
    with suppress(OSError, orjson.JSONDecodeError):
        infos = orjson.loads(file.read_bytes())
        if isinstance(infos, dict):
            pairs = ((name, info.get("features")) for name, info in infos.items() if isinstance(info, dict))
            return {name: features for name, features in pairs if isinstance(features, dict)}
    return {}


def read_readme(file: Path) -> dict[str, dict[str, Any]]:
    """Return the features of every configuration that the YAML at the head of a README.md states."""
    if not file.is_file():
        return {}
    with suppress(UserError):  # what cannot be read states nothing; the tables are there all the same
        head, _, rest = read_text_file(file).partition("---\n")
        block = rest.partition("\n---")[0]
        data = parse(block, str(file)) if not head.strip() else None
        infos = data.get("dataset_info") if isinstance(data, dict) else None
        listed = infos if isinstance(infos, list) else [infos]
        return {
            str(info.get("config_name", "default")): convert_fields(info["features"])
            for info in listed
            if isinstance(info, dict) and isinstance(info.get("features"), list)
        }
    return {}


def convert_fields(fields: Iterable[Any]) -> dict[str, Any]:
    """Return the features of a list of named ones, as the YAML of a README writes them."""
    return {
        str(field["name"]): convert_feature({key: part for key, part in field.items() if key != "name"})
        for field in fields
        if isinstance(field, Mapping) and "name" in field
    }


def convert_feature(feature: Any) -> Any:
    """Return one feature in the form of `datasets`' JSON; what holds no classes becomes a plain value."""
    if isinstance(feature, list):
        return convert_fields(feature)
    if not isinstance(feature, Mapping):
        return {"_type": "Value"}
    labels = feature.get("class_label")
    if isinstance(labels, Mapping):
        return {"names": sort_class_names(labels.get("names")), "_type": "ClassLabel"}
    for key in LISTS:
        if key in feature:
            return {"feature": convert_feature(feature[key]), "_type": "List"}
    return convert_feature(feature.get("struct", feature.get("dtype")))


def sort_class_names(names: Any) -> list[str] | None:
    """Return the names of classes in the order of their numbers, from a list or a mapping of numbers to names."""
    if isinstance(names, list):
        return [str(name) for name in names]
    if not isinstance(names, Mapping) or {str(i) for i in range(len(names))} != set(map(str, names)):
        return None
    return [str(name) for _, name in sorted(names.items(), key=lambda item: int(item[0]))]
