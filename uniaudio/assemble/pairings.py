"""What the first rows of a recipe's sources are like: whether templates suit them, how long clips and answers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from uniaudio.assemble.thin import Clip
from uniaudio.data.card import DatasetCard
from uniaudio.data.cursor import first_rows
from uniaudio.data.questions import render_question, row_seconds
from uniaudio.data.recipe import Entry, Recipe
from uniaudio.data.source import Row, open_source
from uniaudio.data.template import Template
from uniaudio.errors import RowError, UserError

TOKENS_PER_WORD = 1.5
QUESTION = 24  # tokens of an instruction in chat markup
ROWS_READ = 20  # of every source; enough to see columns, labels and audio headers


@dataclass(frozen=True)
class Pairing:
    """What was seen of one line of a recipe."""

    name: str
    split: str
    rows: int | None
    seconds: float | None  # mean clip length of the rows read
    answer_words: float


def check_entry(entry: Entry) -> Pairing:
    """Check every question of a line of `train`; its answers are as long as all of them together."""
    seen = [
        check_pairing(entry.name, entry.dataset, entry.split, t, entry.constants) for t in entry.templates
    ]
    return replace(seen[0], answer_words=sum(pairing.answer_words for pairing in seen))


def check_pairing(
    name: str, card: DatasetCard, split: str, template: Template, constants: Mapping[str, Any]
) -> Pairing:
    """Render the first rows of a source with its template and read their audio headers."""
    source = open_source(card, split)
    rows = first_rows(source.rows(), ROWS_READ)
    if not rows:
        raise UserError(f"dataset {card.name}, split {split}: no rows (is the split's `keep` right?)")
    missing = set(template.inputs) - set(constants) - set(card.fields(rows[0].columns))
    if missing:
        columns = ", ".join(sorted(card.fields(rows[0].columns)))
        raise UserError(
            f"dataset {card.name}: template {template.task} needs {', '.join(sorted(missing))}, "
            f"but the columns are {columns}; add it under `columns` of the card"
        )
    if len(rows[0].audio) != template.num_clips:
        raise UserError(
            f"dataset {card.name}: template {template.task} asks about {template.num_clips} clip(s), "
            f"but a row has {len(rows[0].audio)}"
        )
    usable = [facts for row in rows if (facts := look_at(row, card, template, constants)) is not None]
    if not usable:
        reason = why(rows[0], card, template, constants)
        raise UserError(f"dataset {card.name}: none of the first {len(rows)} rows can be used ({reason})")
    seconds = [s for s, _ in usable if s is not None]
    mean_seconds = sum(seconds) / len(seconds) if seconds else None
    return Pairing(name, split, source.size, mean_seconds, sum(words for _, words in usable) / len(usable))


def render_and_probe(
    row: Row, card: DatasetCard, template: Template, constants: Mapping[str, Any]
) -> tuple[float | None, int]:
    """Return (seconds of all clips, words of the answer) of one row."""
    answer = render_question(row, card, template, constants).answer
    return sum(row_seconds(row)), len(answer.split())


def look_at(
    row: Row, card: DatasetCard, template: Template, constants: Mapping[str, Any]
) -> tuple[float | None, int] | None:
    try:
        return render_and_probe(row, card, template, constants)
    except RowError:
        return None


def why(row: Row, card: DatasetCard, template: Template, constants: Mapping[str, Any]) -> str:
    try:
        render_and_probe(row, card, template, constants)
    except RowError as problem:
        return str(problem)
    return "unknown"


def average_clip(recipe: Recipe) -> Clip:
    """Return the average example of a recipe by the first rows of its sources.

    Raises:
        UserError: for rows that cannot be used, or sources that do not tell the length of a clip without decoding it.
    """
    seen = [check_entry(entry) for entry in recipe.train]
    if unknown := [pairing.name for pairing in seen if pairing.seconds is None]:
        raise UserError(f"{unknown[0]}: the length of its clips is not known; give --seconds")
    shares = recipe.train_shares()
    seconds = sum(share * float(p.seconds or 0) for share, p in zip(shares, seen, strict=True))
    words = sum(share * p.answer_words for share, p in zip(shares, seen, strict=True))
    return Clip(seconds, QUESTION, round(words * TOKENS_PER_WORD) + 1)
