"""YAML 1.2, read strictly: what stands in the file is what is meant.

PyYAML reads YAML 1.1: ``yes`` and ``on`` become booleans, ``12:30`` a number, ``1e-4`` text, a key that is
written twice wins in silence. Here only ``true``, ``false``, ``null`` and numbers of the YAML 1.2 core schema
are not text.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import yaml

from uniaudio.config.text_files import read_text_file
from uniaudio.errors import UserError

BOOLEAN = re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$")
NULL = re.compile(r"^(?:~|null|Null|NULL|)$")
INTEGER = re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")
SPECIAL = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}
LONGEST = 500_000  # characters of a file
WRITTEN = 20_000  # values that a file writes down
VALUES = 200_000  # of a file, those that aliases repeat included
DEPTH = 100
FLOAT = re.compile(r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")


def load_yaml(path: Path) -> dict[str, Any]:
    """Read one mapping from a file.

    Raises:
        UserError: naming file and line, when the file is missing, empty, not YAML, or not one mapping.
    """
    data = parse(read_text_file(path), str(path))
    if data is None:
        raise UserError(f"{path}: is empty; it must be one mapping of keys to values")
    if not isinstance(data, dict):
        raise UserError(f"{path}: must be one mapping of keys to values")
    return data


class BoundedLoader(yaml.SafeLoader):
    """Stops at a number of values, for reading them takes time."""

    values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read one value."""
        self.values += 1
        if self.values > WRITTEN:
            raise yaml.YAMLError(f"holds more than {WRITTEN:,} values; move long lists to separate files")
        return super().compose_node(parent, index)


def parse(text: str, where: str) -> Any:
    """Parse YAML text; ``where`` names it in errors.

    Raises:
        UserError: for text that is no YAML, is too long or nested too deeply, or whose aliases multiply it.
    """
    if len(text) > LONGEST:
        raise UserError(f"{where}: is longer than {LONGEST:,} characters; move long lists to separate files")
    try:
        node = yaml.compose(text, Loader=BoundedLoader)
    except RecursionError as problem:
        raise UserError(f"{where}: is nested too deeply") from problem
    except yaml.MarkedYAMLError as problem:
        line = problem.problem_mark.line + 1 if problem.problem_mark else 1
        hint = (
            "; quote a value that begins with '{{', '@', '%' or '`'" if is_likely_unquoted(text, line) else ""
        )
        raise UserError(f"{where}: line {line}: {problem.problem}{hint}") from problem
    except yaml.YAMLError as problem:
        raise UserError(f"{where}: {' '.join(str(problem).split())}") from problem
    return None if node is None else Builder(where).build(node)


def is_likely_unquoted(text: str, line: int) -> bool:
    lines = text.splitlines()
    return bool(lines) and re.search(r":\s*[{@%`]", lines[min(line, len(lines)) - 1]) is not None


class Builder:
    """Turns the nodes of one text into Python values, within bounds.

    Args:
        where: names the text in errors.
    """

    def __init__(self, where: str) -> None:
        self.where = where
        self.values = 0
        self.inside: list[int] = []  # the nodes that are being built

    def build(self, node: yaml.Node) -> Any:
        """Return the value of a node.

        Raises:
            UserError: naming the line.
        """
        line = node.start_mark.line + 1
        if not node.tag.startswith("tag:yaml.org,2002:"):
            raise UserError(f"{self.where}: line {line}: quote a value that begins with '!' ({node.tag})")
        self.values += 1
        if self.values > VALUES:
            raise UserError(
                f"{self.where}: line {line}: holds more than {VALUES:,} values, with those of aliases (*)"
            )
        if isinstance(node, yaml.ScalarNode):
            try:
                return node.value if node.style in ("'", '"', "|", ">") else parse_plain_scalar(node.value)
            except ValueError as problem:  # Python reads no number of thousands of digits
                raise UserError(f"{self.where}: line {line}: a number with too many digits") from problem
        if id(node) in self.inside:
            raise UserError(f"{self.where}: an alias (*) occurs inside its own anchor (&)")
        if len(self.inside) == DEPTH:
            raise UserError(f"{self.where}: line {line}: is nested too deeply")
        self.inside.append(id(node))
        built = self.build_inside(node)
        self.inside.pop()
        return built

    def build_inside(self, node: yaml.Node) -> Any:
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item) for item in node.value]
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(
                    f"{self.where}: line {line}: a key must be text; quote a value that begins with '{{{{'"
                )
            key = key_node.value
            if key in result:
                raise UserError(f"{self.where}: line {line}: '{key}' is written twice")
            result[key] = self.build(value_node)
        return result


def parse_plain_scalar(text: str) -> Any:
    """Read an unquoted scalar by the YAML 1.2 core schema."""
    if NULL.match(text):
        return None
    if BOOLEAN.match(text):
        return text.lower() == "true"
    if INTEGER.match(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if text.lower() in SPECIAL:
        return SPECIAL[text.lower()]
    if FLOAT.match(text):
        return float(text)
    return text


def parse_override_value(text: str) -> Any:
    """Read the value of a command line override: any YAML, such as ``1e-4``, ``[a, b]`` or ``{x: 1}``."""
    return parse(text, f"override '{text}'")


class PlainDumper(yaml.SafeDumper):
    """Writes what ``load_yaml`` reads back."""


def represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    style = None if isinstance(parse_plain_scalar(text), str) else "'"
    if not text.isprintable():
        style = '"'  # the only style that keeps line breaks such as U+0085
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


PlainDumper.add_representer(str, represent_text)


def dump_yaml(data: Any) -> str:
    """Write plain values so that ``load_yaml`` gives them back."""
    return yaml.dump(data, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=100)


def write_yaml(path: Path, data: Any) -> None:
    """Write plain values to a file, as ``dump_yaml``."""
    path.write_text(dump_yaml(data), encoding="utf-8")


def dump_inline_yaml(data: Any, width: int = 100) -> str:
    """Write plain values in one pair of brackets, on lines of about ``width`` columns."""
    text = yaml.dump(
        data, Dumper=PlainDumper, sort_keys=False, allow_unicode=True, width=width, default_flow_style=True
    )
    return str(text).removesuffix("\n").removesuffix("\n...")
