"""Jinja expressions from YAML files: sandboxed, strict about unknown names, compiled once."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from uniaudio.errors import RowError, UserError, convert_to_row_error


def environment() -> ImmutableSandboxedEnvironment:
    env = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    del env.filters["random"]  # draws come from the example's own generator
    return env


ENVIRONMENT = environment()
COMPARISON = re.compile(
    r"""(?P<column>[^\W\d]\w*) *(?P<sign>[!=]=) *(?:'(?P<text>[^'\\]*)'|"(?P<quoted>[^"\\]*)"|(?P<number>-?\d+))"""
)
ALONE = re.compile(r"\{\{ *(\w+) *\}\}")  # a text that is one column as it stands


class Text:
    """One Jinja text, for example ``"{{ category | replace('_', ' ') }}"``.

    Args:
        source: the text. where: file and key, named in errors.

    Raises:
        UserError: when the syntax is wrong.
    """

    def __init__(self, source: str, where: str) -> None:
        self.source = source
        self.where = where
        try:
            self.names = frozenset(meta.find_undeclared_variables(ENVIRONMENT.parse(source)))
            self.compiled = ENVIRONMENT.from_string(source)
            # most wordings are plain text and most answers one column: rendering them for every row through Jinja
            # would be most of the planner's work
            self.fixed = self.compiled.render() if not self.names else None
            alone = ALONE.fullmatch(source)
            self.column = alone[1] if alone is not None and alone[1] in self.names else None
        except TemplateError as problem:
            raise UserError(f"{where}: {problem.message} in {source!r}") from problem

    def render(self, fields: Mapping[str, Any]) -> str:
        """Fill in the fields.

        Raises:
            RowError: when a field is missing or the text cannot be rendered.
        """
        if self.fixed is not None:
            return self.fixed
        for name in sorted(self.names):
            if name not in fields:
                raise RowError("missing column", f"{self.where} needs '{name}'")
        if self.column is not None:
            return str(fields[self.column])
        return guarded(lambda: self.compiled.render(fields), self.where)


class Condition:
    """One Jinja expression that is true or false of a row, for example ``"fold != 5"``."""

    def __init__(self, source: str, where: str) -> None:
        self.where = where
        try:
            self.names = frozenset(meta.find_undeclared_variables(ENVIRONMENT.parse("{{" + source + "}}")))
            self.compiled = ENVIRONMENT.compile_expression(source, undefined_to_none=False)
            plain = COMPARISON.fullmatch(source.strip())
            self.comparison = plain if plain is not None and plain["column"] in self.names else None
        except TemplateError as problem:
            raise UserError(f"{where}: {problem.message} in {source!r}") from problem

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Return whether the condition is true of the fields.

        Raises:
            UserError: when the rows have no such column or the condition cannot be worked out.
        """
        if self.comparison is not None and self.comparison["column"] in fields:
            # what most cards ask, of every row of a manifest: worked out here, it takes a tenth of the time
            value = self.comparison["text"] or self.comparison["quoted"]
            known: Any = int(self.comparison["number"]) if self.comparison["number"] else value or ""
            return bool((fields[self.comparison["column"]] == known) == (self.comparison["sign"] == "=="))
        for name in sorted(self.names):
            if name not in fields:
                raise UserError(
                    f"{self.where}: the rows have no column '{name}'; they have {', '.join(sorted(fields))}"
                )
        try:
            return bool(guarded(lambda: self.compiled(**fields), self.where))
        except RowError as problem:
            shown = ", ".join(f"{name}={reprlib.repr(fields[name])}" for name in sorted(self.names))
            raise UserError(f"{problem.detail} (in a row with {shown})") from problem


def guarded(action: Callable[[], Any], where: str) -> Any:
    """Run a rendering; whatever goes wrong inside it is the row's fault."""
    with convert_to_row_error("template error", where):
        return action()
