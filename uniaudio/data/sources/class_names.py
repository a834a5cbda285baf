"""Names of classes that a dataset stores as numbers, from its schema or from README.md and dataset_infos.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import orjson

from uniaudio.data.field_values import Classes, ClassIndex

MOST_CLASSES = 1000  # that are scored one by one for every clip without being stated anywhere

Naming = Callable[[Any], Any]
README = "README.md"
INFOS = "dataset_infos.json"  # features as `datasets` wrote them before they stood in README.md
ABOVE = 2  # folders over that of a table in which the files are looked for, as of data/CONFIG/train.parquet


def read_schema_features(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return the features that `datasets` wrote into the metadata of a Parquet file; none for other files."""
    try:
        content = orjson.loads((metadata or {}).get(b"huggingface", b"{}"))
        features = content["info"]["features"]
        return features if isinstance(features, dict) else {}
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return {}


def make_column_namings(features: Mapping[str, Any]) -> dict[str, Naming]:
    """Return a function for each column with classes somewhere in it, from its stored value to one with names."""
    by_column = {name: make_naming(feature) for name, feature in features.items()}
    return {name: naming for name, naming in by_column.items() if naming is not None}


def collect_classes(features: Mapping[str, Any]) -> dict[str, Classes]:
    """Return the classes of the columns that are one class, or a list of them, with up to ``MOST_CLASSES`` of them.

    Args:
        features: as for ``make_naming``, by column.
    """
    classes: dict[str, Classes] = {}
    for column, feature in features.items():
        in_lists = isinstance(feature, list) or (isinstance(feature, Mapping) and "feature" in feature)
        if in_lists:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        names = read_class_names(feature)
        if names and len(names) <= MOST_CLASSES:
            classes[column] = Classes(tuple(map(ClassIndex, range(len(names)), names)), in_lists)
    return classes


def read_class_names(feature: Any) -> list[str] | None:
    """Return the names of a ``ClassLabel`` in the order of their numbers; None for any other feature."""
    if not isinstance(feature, Mapping) or feature.get("_type") != "ClassLabel":
        return None
    names = feature.get("names")
    if isinstance(names, Mapping):  # by number, as in a README.md
        with suppress(ValueError):
            names = [names[number] for number in sorted(names, key=int)]
    return [str(name) for name in names] if isinstance(names, list) else None


def make_naming(feature: Any) -> Naming | None:
    """Return what puts names to the classes in a feature, or None where there are none.

    Args:
        feature: as `datasets` writes it as JSON: ``{"names": [...], "_type": "ClassLabel"}``, or lists and mappings
            of such.
    """
    if isinstance(feature, list) and len(feature) == 1:
        feature = {"feature": feature[0], "_type": "List"}
    if not isinstance(feature, Mapping):
        return None
    if (names := read_class_names(feature)) is not None:
        return partial(name_class, names=names)
    if "feature" in feature:
        inner = make_naming(feature["feature"])
        return None if inner is None else partial(name_items, naming=inner)
    inside = make_column_namings({name: part for name, part in feature.items() if not name.startswith("_")})
    return partial(name_class_columns, namings=inside) if inside else None


def name_class(value: Any, names: Sequence[str]) -> Any:
    """Return the number of a class with its name; anything else as it is."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes floats of a column with gaps
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    # -1 is what `datasets` stores for rows whose class is not known
    return ClassIndex(value, names[value]) if 0 <= value < len(names) else None


def name_items(value: Any, naming: Naming) -> Any:
    """Name the classes in the items of a list; a mapping of lists is how `datasets` stores a list of mappings."""
    if isinstance(value, list | tuple):
        return [naming(item) for item in value]
    if isinstance(value, Mapping):
        columns = {name: items if isinstance(items, list) else [items] for name, items in value.items()}
        named: dict[str, list[Any]] = {name: [] for name in columns}
        for name, items in columns.items():
            named[name] = [naming({name: item})[name] for item in items]
        return named
    return value


def name_class_columns(row: Any, namings: Mapping[str, Naming]) -> Any:
    """Return a row, or a mapping in one, with the names of its classes."""
    if not isinstance(row, Mapping) or not namings:
        return row
    return {name: namings[name](value) if name in namings else value for name, value in row.items()}


@lru_cache(maxsize=64)
def read_folder_features(folder: Path) -> dict[str, Any]:
    """Return the features of a folder of tables, as `datasets` writes them as JSON; none where no file states any.

    Of several configurations those count that the folder is named after, or the only one.
    """
    for place in (folder, *folder.parents[:ABOVE]):
        if stated := read_stated_features(place):
            named = [name for name in stated if name == folder.name]
            chosen = named or (list(stated) if len(stated) == 1 else [])
            return stated[chosen[0]] if chosen else {}
    return {}


def read_stated_features(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the features of each configuration that a folder's README.md, or else its dataset_infos.json, states."""
    with suppress(Exception):  # what cannot be read states nothing; the tables are there all the same
        readme = folder / README
        if (readme.is_file() and b"dataset_info" in readme.read_bytes()) or (folder / INFOS).is_file():
            from datasets.info import DatasetInfosDict  # slow to import, and few folders hold such a file

            infos = DatasetInfosDict.from_directory(folder)
            return {name: info.features.to_dict() for name, info in infos.items() if info.features}
    return {}
