"""The page docs/config-reference.md, made from the records of the config files and the docstrings of their fields."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from uniaudio.config.field_docs import (
    document_fields,
    document_record,
    find_record_places,
    list_declared_fields,
    list_lineage,
    list_reachable_records,
)
from uniaudio.config.json_schema import FileKind, Schema, build_json_schema
from uniaudio.config.records import Strict

BOUNDS = {"exclusiveMinimum": "> {}", "minimum": "≥ {}", "exclusiveMaximum": "< {}", "maximum": "≤ {}"}
FEW = 3  # places of a record that are no longer written one by one
WORDS = {
    "string": "text",
    "integer": "integer",
    "number": "number",
    "boolean": "true or false",
    "null": "null",
}


def render_reference(introduction: str, kinds: Sequence[FileKind]) -> str:
    """Return the page in Markdown: a section for each kind of file, a table for each of its records."""
    return "\n".join([introduction, *(line for kind in kinds for line in render_kind(kind))])


def render_kind(kind: FileKind) -> Iterator[str]:
    """Yield the lines of the section of one kind of file."""
    schema = build_json_schema(kind)
    places = find_record_places(kind.record)
    headings = {record: make_heading(kind, record, places[record]) for record in places}
    yield f"## {kind.name.capitalize()}\n"
    if kind.inherits:
        yield "`base: OTHER` inherits the keys of another file of this kind: mappings are merged, lists are replaced.\n"
    for record in places:
        yield f"### {headings[record]}\n"
        parents = [
            f"[{parent.__name__}](#{make_anchor(headings[parent])})" for parent in list_lineage(record)[1:]
        ]
        more = f" It also has the keys of {' and '.join(parents)}." if parents else ""
        yield (
            fill(f"{document_record(record).text}{more}", 120, break_on_hyphens=False, break_long_words=False)
            + "\n"
        )
        yield "| key | type | default | meaning | read by |"
        yield "|---|---|---|---|---|"
        member = next(each for each in list_reachable_records(kind.record) if record in list_lineage(each))
        links = {each.__name__: f"#{make_anchor(heading)}" for each, heading in headings.items()}
        for name in list_declared_fields(record):
            text = document_fields(record)[name]
            cells = (
                f"`{f'{find_shared_place(places[record])}.{name}'.lstrip('.')}`",
                describe_type(schema["$defs"][member.__name__]["properties"][name], links),
                describe_default(kind, record, name),
                text.text,
                ", ".join(text.read_by),
            )
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
        yield ""


def make_heading(kind: FileKind, record: type[Strict], places: Sequence[str]) -> str:
    """Return the title of a record: the keys where it stands, and its name."""
    standing = (
        [f"`{place}`" for place in places if place]
        if len(places) < FEW
        else [f"`{find_shared_place(places)}`"]
    )
    return f"{', '.join(standing) or f'The keys of a {kind.name}'} ({record.__name__})"


def find_shared_place(places: Sequence[str]) -> str:
    """Return the key of a record: the first one, of many in one place ``place.*``."""
    return places[0] if len(places) < FEW else f"{places[0].rpartition('.')[0]}.*"


def make_anchor(heading: str) -> str:
    """Return the anchor that Markdown gives a heading."""
    return re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def describe_type(node: Schema, links: dict[str, str]) -> str:
    """Return what a value may be, in words.

    Args:
        links: anchors of the records.
    """
    for choice in ("anyOf", "oneOf"):
        if choice in node:
            return " or ".join(dict.fromkeys(describe_type(option, links) for option in node[choice]))
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        return f"[{name}]({links[name]})"
    if "const" in node or "enum" in node:
        return ", ".join(f"`{value}`" for value in node.get("enum", [node.get("const")]))
    kind = node.get("type")
    if kind == "array":
        if "prefixItems" in node:
            return f"[{', '.join(describe_type(item, links) for item in node['prefixItems'])}]"
        return f"list of {describe_type(node['items'], links)}"
    if kind == "object":
        inside = node.get("additionalProperties")
        return (
            f"mapping of names to {describe_type(inside, links) if isinstance(inside, dict) else 'any value'}"
        )
    bounds = [words.format(f"{node[key]:g}") for key, words in BOUNDS.items() if key in node]
    return " ".join([WORDS.get(str(kind), "any value"), " and ".join(bounds)]).strip()


def describe_default(kind: FileKind, record: type[Strict], name: str) -> str:
    """Return the default of a field as it is written in YAML; that of a record is what differs from its own."""
    field = record.model_fields[name]
    if field.is_required():
        return "by file name" if record is kind.record and name in kind.preset else "required"
    value: Any = field.get_default(call_default_factory=True)
    assert value is not PydanticUndefined
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_unset=True)
    return f"`{value if value and isinstance(value, str) else json.dumps(value, ensure_ascii=False)}`"
