"""What the first rows of a recipe's sources are like: whether templates suit them, how long clips and answers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from uniaudio.config.nearest import did_you_mean
from uniaudio.data.card import DatasetCard
from uniaudio.data.clip_notices import ADVICE
from uniaudio.data.recipe import Entry, Recipe
from uniaudio.data.row_questions import decode_clips, render_question, row_seconds
from uniaudio.data.segment import unused_time_columns
from uniaudio.data.source import Row, Source, open_source
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.data.template import Template
from uniaudio.errors import RowError, UserError
from uniaudio.estimate.thin import Clip
from uniaudio.types import SAMPLE_RATE

TOKENS_PER_WORD = 1.5
QUESTION = 24  # tokens of an instruction in chat markup
ROWS_READ = 20  # of every source; enough to see columns, labels and audio headers
SECONDS_DECODED = 60.0  # of audio of every source, to see whether clips are odd
LONGEST_DECODED = 120.0  # seconds of a clip; longer ones are not decoded to be looked at


@dataclass(frozen=True)
class Pairing:
    """What was seen of one line of a recipe."""

    name: str
    split: str
    rows: int | None
    seconds: float | None  # mean clip length of the rows read
    answer_words: float
    notes: tuple[str, ...] = ()


def check_entry(entry: Entry) -> Pairing:
    """Check every question of a line of `train`; its answers are as long as all of them together."""
    seen = [
        check_pairing(entry.name, entry.dataset, entry.split, t, entry.constants) for t in entry.templates
    ]
    augmenting = entry.augmenter.notes() if entry.augmenter is not None else []
    return replace(
        seen[0],
        answer_words=sum(pairing.answer_words for pairing in seen),
        notes=tuple(dict.fromkeys([*(note for pairing in seen for note in pairing.notes), *augmenting])),
    )


def check_pairing(
    name: str, card: DatasetCard, split: str, template: Template, constants: Mapping[str, Any]
) -> Pairing:
    """Render the first rows of a source with its template and read their audio headers.

    Raises:
        UserError: with the reason of the first row, when none of them can be used; naming a column that none of them
            has.
    """
    source = open_source(card, split)
    read = list(islice(source.rows(), ROWS_READ))
    rows = [row for row in read if isinstance(row, Row)]
    where = f"dataset {card.name}, split {split}"
    if not read:
        raise UserError(f"{where}: no rows (is the split's `keep` right?)")
    refuse_missing_columns(rows, card, template, constants)
    usable, reasons = [], [str(row) for row in read if isinstance(row, RowError)]
    for row in rows:
        try:
            usable.append(render_and_probe(row, card, template, constants))
        except RowError as problem:
            reasons.append(f"{row.key}: {problem}")
    if not usable:
        raise UserError(f"{where}: none of the first {len(read)} rows can be used ({reasons[0]})")
    seconds = [s for s, _ in usable if s is not None]
    answers = [answer for _, answer in usable]
    return Pairing(
        name,
        split,
        source.size,
        sum(seconds) / len(seconds) if seconds else None,
        sum(len(answer.split()) for answer in answers) / len(answers),
        (
            *notes_of(source, template, answers),
            *notes_of_times(rows, card, template),
            *notes_of_clips(rows, SECONDS_DECODED),
        ),
    )


def refuse_missing_columns(
    rows: Sequence[Row], card: DatasetCard, template: Template, constants: Mapping[str, Any]
) -> None:
    """Refuse a template or card that uses a column which none of the first rows has.

    Raises:
        UserError: naming the column and those that there are.
    """
    if not rows:
        return
    stored = {str(name) for row in rows for name in row.columns}
    listed = ", ".join(sorted(stored)) or "none"
    for name in sorted(set(template.inputs) - set(constants)):
        text = card.columns.get(name)
        if text is None and name not in stored:
            raise UserError(
                f"dataset {card.name}: template {template.task} needs {name}{did_you_mean(name, stored)}, but the "
                f"columns are {listed}; add it under `columns` of the card"
            )
        for used in sorted(text.names - stored) if text is not None else ():
            raise UserError(
                f"{card.path}: columns.{name}: uses '{used}'{did_you_mean(used, stored)}, but the columns of the rows "
                f"are {listed}"
            )


def notes_of_times(rows: Sequence[Row], card: DatasetCard, template: Template) -> list[str]:
    """Return a line about columns that look like times of a segment, where nothing makes use of them."""
    stored = {str(name) for row in rows for name in row.columns}
    used = set(template.inputs).union(*(text.names for text in card.columns.values()))
    columns = unused_time_columns(stored, card.segment, used) if card.finds_segments else []
    if not columns:
        return []
    return [
        f"clips are taken whole, although there are columns {', '.join(columns)}; name the times of segments under "
        f"`segment` of the card, or write `segment: none` there"
    ]


def notes_of_clips(rows: Sequence[Row], seconds: float) -> list[str]:
    """Return a line for each way in which some of the first clips are odd though usable.

    Args:
        seconds: of audio that are decoded at most to see it.
    """
    kinds: Counter[str] = Counter()
    decoded = 0
    for row in rows:
        of_row: list[str] = []
        with suppress(RowError):
            seconds -= sum(map(len, decode_clips(row, LONGEST_DECODED, of_row))) / SAMPLE_RATE
        kinds.update(set(of_row))
        decoded += 1
        if seconds <= 0:
            break
    return [f"{kind} in {count} of the first {decoded} rows: {ADVICE[kind]}" for kind, count in kinds.items()]


def notes_of(source: Source, template: Template, answers: Sequence[str]) -> list[str]:
    """Return what a person should know of a source that can be used."""
    notes = []
    if passed_over := describe_left_out(source.left_out):
        notes.append(f"passed over: {passed_over}")
    if template.labels is None and all(answer.strip().isdigit() for answer in answers):
        shown = ", ".join(dict.fromkeys(answers[:5]))
        notes.append(
            f"all answers seen are whole numbers ({shown}); if they number classes, give their names under `columns` "
            f"of the card"
        )
    return notes


def render_and_probe(
    row: Row, card: DatasetCard, template: Template, constants: Mapping[str, Any]
) -> tuple[float | None, str]:
    """Return (seconds of all clips, the answer) of one row."""
    answer = render_question(row, card, template, constants).answer
    return sum(row_seconds(row)), answer


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
