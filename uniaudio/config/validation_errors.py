"""One sentence for whatever does not fit a record: the key as the file has it, what was expected, what to write."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from uniaudio.config.nearest import suggest_name, suggest_or_list
from uniaudio.config.usual_names import FILES, UsualNames

MAPPING_ERRORS = ("dict_type", "model_type", "model_attributes_type")
LIST_ERRORS = ("list_type", "tuple_type")
MOST_HINTS = 5  # a name that more parts of a file have says too little about what was meant


def explain(
    kind: type[BaseModel], problem: ValidationError, data: Any, usual: UsualNames | None = None
) -> str:
    """Put the first error into one sentence, unknown keys first: they explain missing ones.

    Args:
        data: what was checked. usual: names of settings elsewhere, for unknown keys.
    """
    if usual is not None and isinstance(data, dict) and usual.mark not in data:
        for mark, file in FILES.items():
            if mark in data and mark not in kind.model_fields:
                return f"this is a {file}, not a {usual.file}"
    errors = problem.errors()
    if (
        errors[0]["type"] == "json_invalid"
    ):  # records are checked as JSON, which everything else can be written in
        return "a text holds half a character (U+D800 to U+DFFF); remove it"
    error = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path, records = find_key(kind, error, data)
    key = ".".join(map(str, path)) or "the file"
    if error["type"] == "extra_forbidden":
        place, alternatives = find_place(kind, path[:-1])
        if others := list_kinds_with(alternatives, str(path[-1])):
            return f"{key}: unknown key of this kind; it belongs to kind {' or '.join(others)}"
        return f"{key}: unknown key{explain_unknown_key(kind, records[0], str(path[-1]), place, usual)}"
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
        return f"{key}: {quote_value(error['input'])} is not one of {', '.join(choices)}{near}"
    if error["type"] in ("too_short", "too_long"):
        bound = "at least" if error["type"] == "too_short" else "at most"
        count = error["ctx"].get("min_length", error["ctx"].get("max_length"))
        return f"{key}: needs {bound} {count} {'entry' if count == 1 else 'entries'}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        message = message[0].lower() + message[1:]
        return f"{key}: {message}" if error["loc"] else message
    # the alternatives of a type, such as a text or a list, fail one by one
    failed = [e for e in errors if e["type"] != "missing" and find_key(kind, e, data)[0] == path]
    expected = dict.fromkeys(describe_expected(kind, each, data) for each in failed)
    return f"{key}: input should be {' or '.join(expected)}, got {quote_value(error['input'])}"


def describe_expected(kind: type[BaseModel], error: Any, data: Any) -> str:
    """Return what one error expects, in the words of YAML."""
    if error["type"] in MAPPING_ERRORS:
        records = find_key(kind, error, data)[1]
        name = "kind" if len(records) > 1 else "path"
        if records and isinstance(error["input"], str) and name in records[0].model_fields:
            return f"a mapping such as {{{name}: {error['input']}}}"
        return f"a mapping with the keys {', '.join(records[0].model_fields)}" if records else "a mapping"
    if error["type"] in LIST_ERRORS:
        return "a list"
    if error["type"] == "string_type":
        return "text"
    if error["type"] == "string_too_short":
        return "text that is not empty"
    return str(error["msg"][0].lower() + error["msg"][1:]).removeprefix("input should be ")


def quote_value(value: Any) -> str:
    """Return a value as a user would write it in YAML, with quotes around text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def explain_unknown_key(
    kind: type[BaseModel],
    record: type[BaseModel],
    name: str,
    place: str,
    usual: UsualNames | None = None,
) -> str:
    """Say what to write in place of an unknown key.

    In this order: our keys for a name that is usual elsewhere, the keys of this name in other parts of the file, the
    nearest key of this part.

    Args:
        record: the part of the file that has the key. place: that part, as ``list_key_places`` writes it.
    """
    usual = usual or UsualNames()
    known = list(record.model_fields)
    keys = [
        key
        for key in usual.keys.get(name.lower(), ())
        # another record of this place may have the key, such as another kind of fusion
        if key != place and (key.rpartition(".")[0] != place or key.rpartition(".")[2] in known)
    ]
    keys = keys or list_keys_called(kind, name)
    shared = [count_common_parts(key, place) for key in keys]
    nearest = [key for key, count in zip(keys, shared, strict=True) if count == max(shared)]
    if 0 < len(nearest) <= MOST_HINTS:
        return f" (did you mean {', or '.join(write_hint(key, place, usual) for key in nearest)}?)"
    if sentence := usual.sentences.get(name.lower()):
        return f"; {sentence}"
    return suggest_or_list(name, known)


def write_hint(key: str, place: str, usual: UsualNames) -> str:
    """Return a key in quotes, without the part of the file that the reader is in, and what its value is."""
    shown = key.removeprefix(f"{place}.") if place else key
    note = usual.notes.get(key)
    return f"'{shown}', {note}" if note else f"'{shown}'"


def count_common_parts(key: str, place: str) -> int:
    """Return how many parts of two dotted keys agree, counted from the first."""
    pairs = zip(key.split("."), place.split("."), strict=False)
    return len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))


def find_key(kind: type[BaseModel], error: Any, data: Any) -> tuple[list[int | str], list[type[BaseModel]]]:
    """Return the path of an error's key as it stands in the file, and the record that has the key.

    The path of the validator also has the kinds that choose between records, and names of types and functions where
    a value may have several types. Where a mapping was expected, the records are those that it may be.
    """
    annotation: Any = kind
    place = data
    path: list[int | str] = []
    records = [kind]
    for number, part in enumerate(error["loc"], 1):
        records = list_records(annotation)
        if len(records) > 1 and (chosen := choose_kind(records, part)):
            annotation = chosen
            continue
        fields = records[0].model_fields if records else {}
        is_here = (isinstance(place, dict) and part in place) or (
            isinstance(place, list) and isinstance(part, int) and part < len(place)
        )
        is_last = number == len(error["loc"])
        if not (is_here or part in fields or (is_last and error["type"] == "missing")):
            continue
        path.append(part)
        place = place[part] if is_here else None
        annotation = fields[str(part)].annotation if part in fields else find_item_type(annotation)
    return path, list_records(annotation) if error["type"] in MAPPING_ERRORS else records


def list_records(annotation: Any) -> list[type[BaseModel]]:
    """Return the records that a value of a type may be, not those inside its lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (dict, list, tuple):
        return []
    return [record for part in get_args(annotation) for record in list_records(part)]


def find_item_type(annotation: Any) -> Any:
    """Return the type of the items of the first list or mapping in a type, or None."""
    if get_origin(annotation) is dict:
        return get_args(annotation)[1]
    if get_origin(annotation) in (list, tuple):
        return get_args(annotation)[0]
    return next((item for part in get_args(annotation) if (item := find_item_type(part)) is not None), None)


def choose_kind(records: list[type[BaseModel]], tag: int | str) -> type[BaseModel] | None:
    """Return the record whose ``kind`` may be ``tag``."""
    for record in records:
        field = record.model_fields.get("kind")
        if field is not None and tag in get_args(field.annotation):
            return record
    return None


def list_key_places(kind: type[BaseModel]) -> list[str]:
    """Return all keys of a file, with ``[]`` for the items of a list and ``NAME`` for a name of the user's choice."""
    return list(dict.fromkeys(iterate_keys(kind, "")))


def iterate_keys(record: type[BaseModel], place: str) -> Iterator[str]:
    """Yield the keys of a record that stands at ``place``, and those inside them."""
    for name, field in record.model_fields.items():
        key = f"{place}.{name}".lstrip(".")
        yield key
        for inner, inner_place in iterate_inner_records(field.annotation, key):
            yield from iterate_keys(inner, inner_place)


def iterate_inner_records(annotation: Any, place: str) -> Iterator[tuple[type[BaseModel], str]]:
    """Yield the records inside a type with their place: ``place``, ``place[]`` in lists, ``place.NAME`` in mappings."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation, place
    origin = get_origin(annotation)
    inside = {tuple: f"{place}[]", list: f"{place}[]", dict: f"{place}.NAME"}.get(origin, place)
    for part in get_args(annotation):
        yield from iterate_inner_records(part, inside)


def list_keys_called(kind: type[BaseModel], name: str) -> list[str]:
    """Return the keys of a file with this name, those that are nested least."""
    keys = [key for key in list_key_places(kind) if key.rpartition(".")[2] == name]
    return [key for key in keys if key.count(".") == min(each.count(".") for each in keys)]


def list_kinds_with(annotation: Any, name: str) -> list[str]:
    """Return the kinds whose records have a key, of a type that is one of several records."""
    records = [record for record in list_records(annotation) if name in record.model_fields]
    return [str(tag) for record in records for tag in get_args(record.model_fields["kind"].annotation)]


def find_place(kind: type[BaseModel], path: list[int | str]) -> tuple[str, Any]:
    """Return the path of a part of a file as ``list_key_places`` writes it, and the type of that part."""
    place = ""
    annotation: Any = kind
    for part in path:
        records = list_records(annotation)
        record = next((each for each in records if part in each.model_fields), None)
        if record is not None:
            place, annotation = f"{place}.{part}".lstrip("."), record.model_fields[str(part)].annotation
        else:
            place += "[]" if isinstance(part, int) else ".NAME"
            annotation = find_item_type(annotation)
    return place, annotation
