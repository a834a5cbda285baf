"""JSON schemas of the config files, made from their records, for editors and other checkers of YAML."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uniaudio.config.field_docs import document_fields, document_record, list_reachable_records
from uniaudio.config.records import Strict

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# behind the name of a definition: the same record where a `base` may hold the rest of it
PARTIAL = ".partial"
BASE = {
    "type": "string",
    "description": "Another file of this kind, by name or path, whose keys are inherited.",
}

Schema = dict[str, Any]


@dataclass(frozen=True)
class FileKind:
    """A kind of YAML file.

    Args:
        name: as the command line has it. record: its keys.
        inherits: whether `base` may name a file whose keys are inherited.
        preset: keys that have a default although the record requires them.
    """

    name: str
    record: type[Strict]
    inherits: bool = True
    preset: tuple[str, ...] = ()


def build_json_schema(kind: FileKind) -> Schema:
    """Return the JSON schema (draft 2020-12) of a kind of file.

    It knows keys, types, ranges and choices. What depends on several keys or on other files is left to the commands.
    """
    root = kind.record.__name__
    whole = kind.record.model_json_schema()
    definitions: dict[str, Schema] = {**whole.pop("$defs", {}), root: whole}
    for record in list_reachable_records(kind.record):
        definition, texts = definitions[record.__name__], document_fields(record)
        definition["description"] = document_record(record).text
        for name, node in definition["properties"].items():
            node["description"] = texts[name].text
            if "$ref" in node:
                node.pop("default", None)  # its fields have theirs
    whole["required"] = [name for name in whole["required"] if name not in kind.preset]
    start: Schema = {"$ref": f"#/$defs/{root}"}
    if kind.inherits:
        add_partial(root, definitions)
        for definition in (whole, definitions[root + PARTIAL]):
            definition["properties"] = {"base": BASE, **definition["properties"]}
        start = {"if": {"required": ["base"]}, "then": {"$ref": f"#/$defs/{root}{PARTIAL}"}, "else": start}
    title = f"uniaudio {kind.name}"
    return {"$schema": DIALECT, "title": title, **start, "$defs": drop_noise(definitions)}


def add_partial(name: str, definitions: dict[str, Schema]) -> None:
    """Add the definition of a record of which a base may hold a part: nothing in it is required.

    Mappings inside it are partial, too; lists are not, for a list replaces that of the base.
    """
    if name + PARTIAL in definitions:
        return
    whole = definitions[name]
    definitions[name + PARTIAL] = partial = {key: value for key, value in whole.items() if key != "required"}
    partial["properties"] = {
        key: make_partial(node, definitions) for key, node in whole["properties"].items()
    }


def make_partial(node: Schema, definitions: dict[str, Schema]) -> Schema:
    """Return the schema of a value of which a base may hold a part."""
    if "$ref" in node:
        add_partial(node["$ref"].rpartition("/")[2], definitions)
        return {**node, "$ref": node["$ref"] + PARTIAL}
    for choice in ("oneOf", "anyOf"):
        if choice in node:
            rest = {key: value for key, value in node.items() if key != choice}
            return {**rest, "anyOf": [make_partial(option, definitions) for option in node[choice]]}
    inside = node.get("additionalProperties")
    return (
        {**node, "additionalProperties": make_partial(inside, definitions)}
        if isinstance(inside, dict)
        else node
    )


def drop_noise(value: Any) -> Any:
    """Return a schema without what pydantic adds for others: titles, and discriminators of OpenAPI."""
    if isinstance(value, list):
        return [drop_noise(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: drop_noise(item)
        for key, item in value.items()
        if key != "discriminator" and not (key == "title" and isinstance(item, str))
    }
