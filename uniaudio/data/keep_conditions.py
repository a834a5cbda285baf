"""Conditions over the columns of a row that a `keep` of a card states: sandboxed, compiled once."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from typing import Any

from jinja2 import meta

from uniaudio.data.jinja import LIMITED, PLAIN, compute_unit_hash, convert_template_errors
from uniaudio.data.jinja_budget import BUDGET
from uniaudio.data.jinja_comparison import compile_condition
from uniaudio.data.jinja_sandbox import is_bounded
from uniaudio.errors import RowError, UserError, convert_to_row_error

KEY = "__key__"  # the key of a row, which every source has, as a column
# what divides rows by a hash, see ``compute_unit_hash``
HASHED = re.compile(
    r"(?P<column>[^\W\d]\w*) \| unit_hash(?:\((?P<seed>\d*)\))? (?P<sign>>=|<) (?P<share>0?\.\d+)"
)
MOST_SEEN = 10_000  # values of a column whose answers are kept


class Condition:
    """One Jinja expression that is true or false of a row, for example ``"fold != 5"``."""

    def __init__(self, source: str, where: str) -> None:
        self.source = source
        self.where = where
        with convert_template_errors(source, where):
            tree = LIMITED.parse("{{" + source + "}}")
            self.names = frozenset(meta.find_undeclared_variables(tree))
            self.compiled = compile_condition(PLAIN if is_bounded(tree) else LIMITED, source)
            self.hashed = HASHED.fullmatch(source.strip())
            self.single = next(iter(self.names)) if len(self.names) == 1 else None
            # answers by the value of the only column: folds and speakers have few, and looking one up takes a fiftieth
            # of the time that working it out takes
            self.seen: dict[Any, bool] = {}

    def is_true(self, fields: Mapping[str, Any]) -> bool:
        """Return whether the condition is true of the fields.

        Raises:
            UserError: when the rows have no such column or the condition cannot be worked out.
            RowError: when a column holds the error why this row does not have it.
        """
        value = fields.get(self.single) if self.single is not None else None
        if self.hashed is not None and isinstance(value, str):
            below = compute_unit_hash(value, int(self.hashed["seed"] or 0)) < float(self.hashed["share"])
            return below == (self.hashed["sign"] == "<")
        key = (type(value), value) if type(value) in (str, int, float, bool) else None
        if key in self.seen:
            return self.seen[key]
        for name in sorted(self.names):
            if name not in fields:
                raise UserError(
                    f"{self.where}: the rows have no column '{name}'; they have {', '.join(sorted(fields))}"
                )
            if isinstance(value := fields[name], RowError):
                raise value.copy()
        try:
            with convert_to_row_error("template error", self.where):
                BUDGET.begin()
                holds = bool(self.compiled(**fields))
        except RowError as problem:
            shown = ", ".join(f"{name}={reprlib.repr(fields[name])}" for name in sorted(self.names))
            raise UserError(f"{problem.detail} (in a row with {shown})") from problem
        if key is not None and len(self.seen) < MOST_SEEN:
            self.seen[key] = holds
        return holds
