"""Jinja expressions from YAML files: sandboxed, strict about unknown names; Whisper's tokens in prompts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager
from functools import partial
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta

from uniaudio.config.limits import LONGEST_SOURCE
from uniaudio.data.field_values import Null, is_plain, wrap_value, write_value
from uniaudio.data.jinja_budget import BUDGET
from uniaudio.data.jinja_comparison import compile_text, prepare_comparisons
from uniaudio.data.jinja_sandbox import LimitedEnvironment, PlainEnvironment, is_bounded
from uniaudio.errors import RowError, UserError, convert_to_row_error, read_first_line

TOKEN = re.compile(r"<\|([\w.-]+)\|>")  # a special token of Whisper as a template file writes it
# what a template writes between the turns of a conversation: the answer, or the next question, begins
TURN_TOKENS = ("<|assistant|>", "<|user|>")
# stand around its name while rendering, so that data can never make one
OPENING, CLOSING = "\ue003", "\ue004"
WRITTEN_TOKEN = re.compile(f"{OPENING}([^{OPENING}{CLOSING}]*){CLOSING}")


def build_environment(kind: type[PlainEnvironment]) -> PlainEnvironment:
    env = kind(undefined=StrictUndefined, keep_trailing_newline=True, finalize=write_value)
    del env.filters["random"]  # draws come from the example's own generator
    for name in ("int", "float"):
        env.filters[name] = partial(convert_number, env.filters[name])
    env.filters["unit_hash"] = compute_unit_hash
    env.tests["none"] = lambda value: value is None or isinstance(value, Null)
    prepare_comparisons(env)
    if isinstance(env, LimitedEnvironment):
        env.limit_filters()
    return env


def convert_number(convert: Callable[..., Any], value: Any, *default: Any, **options: Any) -> Any:
    """Apply Jinja's ``int`` or ``float`` without its default of 0: text that is not a number is an error.

    Raises:
        ValueError: where no default is given and the value is not a number.
    """
    if default or "default" in options:
        return convert(value, *default, **options)
    one, other = convert(value, 0, **options), convert(value, 1, **options)
    if one != other:
        raise ValueError(f"{str(value)[:100]!r} is not a number")
    return one


def compute_unit_hash(value: Any, seed: int = 0) -> float:
    """Return a number from 0 up to 1 that is a hash of a value and a seed, the same everywhere and always.

    So ``speaker | unit_hash >= 0.1`` keeps nine tenths of the speakers, each with all of its rows.
    """
    digest = hashlib.blake2b(f"{seed}:{value}".encode("utf-8", "backslashreplace"), digest_size=6)
    return int.from_bytes(digest.digest()) / 2**48


PLAIN = build_environment(PlainEnvironment)  # for templates that cannot multiply anything
LIMITED = build_environment(LimitedEnvironment)
SHOWN = 200  # of them in a message
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
        with convert_template_errors(source, where):
            tree = LIMITED.parse(source)
            self.names = frozenset(meta.find_undeclared_variables(tree))
            self.compiled = compile_text(PLAIN if is_bounded(tree) else LIMITED, source)
            # most wordings are plain text and most answers one column: rendering them for every row through Jinja
            # would be most of the planner's work
            self.fixed = self.compiled.render() if not self.names else None
            alone = ALONE.fullmatch(source)
            self.column = alone[1] if alone is not None and alone[1] in self.names else None

    def list_missing(self, stored: Set[str]) -> list[str]:
        """Return the columns that the text uses and rows with the stored columns do not have."""
        return sorted(self.names - stored)

    def render(self, fields: Mapping[str, Any]) -> str:
        """Fill in the fields; a field that is an error says why the row does not have it.

        Raises:
            RowError: when a field is missing or has no value, or the text cannot be rendered.
        """
        if self.fixed is not None:
            return self.fixed
        if self.column is not None:
            value = fields.get(self.column)
            if type(value) is not float and is_plain(value):
                return str(value)
        if not self.names <= fields.keys():
            name, columns = min(self.names - fields.keys()), ", ".join(sorted(map(str, fields)))
            raise RowError("missing column", f"{self.where} needs '{name}'; columns: {columns}")
        values = {
            name: value if is_plain(value := fields[name]) else wrap_value(value, name) for name in self.names
        }
        BUDGET.begin()
        try:
            with convert_to_row_error("template error", self.where):
                if self.column is not None:
                    return str(write_value(values[self.column]))
                return self.compiled.render(values)
        except RowError as problem:  # of a value, which does not know who writes it
            if problem.detail.startswith(self.where):
                raise
            raise RowError(problem.reason, f"{self.where}: {problem.detail}") from problem


@contextmanager
def convert_template_errors(source: str, where: str) -> Iterator[None]:
    """Turn whatever is wrong with a text into one sentence while it is parsed, compiled and, if constant, worked out.

    Raises:
        UserError: naming the place and the text.
    """
    shown = source if len(source) <= SHOWN else f"{source[:SHOWN]}..."
    if len(source) > LONGEST_SOURCE:
        raise UserError(f"{where}: is longer than {LONGEST_SOURCE:,} characters")
    BUDGET.begin()
    try:
        yield
    except RowError as problem:
        raise UserError(f"{where}: {problem.detail} in {shown!r}") from problem
    except TemplateError as problem:
        raise UserError(f"{where}: {problem.message} in {shown!r}") from problem
    except (RecursionError, MemoryError, SyntaxError) as problem:
        raise UserError(f"{where}: is nested too deeply in {shown!r}") from problem
    # of a constant text, which is worked out at once
    except (ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as problem:
        raise UserError(f"{where}: {read_first_line(problem)} in {shown!r}") from problem


class Wording(str):
    """A piece of a prompt that knows which special tokens the template wrote into it.

    Args:
        text: the piece with those tokens. tokens: their texts, which the data of a row cannot add to.
    """

    tokens: tuple[str, ...]

    def __new__(cls, text: str, tokens: tuple[str, ...] = ()) -> Wording:
        piece = super().__new__(cls, text)
        piece.tokens = tokens
        return piece

    def __getnewargs__(self) -> tuple[str, tuple[str, ...]]:  # type: ignore[override]  # what pickle calls
        return str(self), self.tokens

    @classmethod
    def from_rendered(cls, text: str) -> str:
        """Return a rendered piece with its tokens as the template file writes them; most pieces have none."""
        if OPENING not in text:
            return text
        tokens = tuple(f"<|{name}|>" for name in WRITTEN_TOKEN.findall(text))
        return cls(WRITTEN_TOKEN.sub(r"<|\1|>", text), tokens)
