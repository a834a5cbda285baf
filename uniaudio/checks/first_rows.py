"""What the first rows of a recipe's sources are like: whether templates suit them, how long clips and answers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from statistics import fmean

from uniaudio.checks.odd_clips import (
    decode_some_clips,
    describe_broken_spread,
    find_undecodable,
    iterate_spread_rows,
)
from uniaudio.config.nearest import suggest_name
from uniaudio.data.batching import compute_audio_cost
from uniaudio.data.card import DatasetCard
from uniaudio.data.column_names import suggest_first_of
from uniaudio.data.jinja import Text
from uniaudio.data.long_clips import LongClips, measure_clips
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import Entry, RecipeEntry, open_entry
from uniaudio.data.segment import list_unused_time_columns
from uniaudio.data.sources.base import Row
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.data.template import Template
from uniaudio.data.template_file import JOINED_METRICS
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.metrics.normalization import normalize_text
from uniaudio.evaluate.metrics.tokenization import separate_units

TOKENS_PER_WORD = 1.5
QUESTION = 24  # tokens of an instruction in chat markup
ROWS_READ = 20  # of every source; enough to see columns, labels and audio headers
SECONDS_DECODED = 60.0  # of audio of every source, to see whether clips are odd


@dataclass(frozen=True)
class CheckedEntry:
    """What was seen of one line of a recipe."""

    name: str
    split: str
    rows: int | None
    seconds: float  # mean clip length of the rows read, before augmentation
    answer_words: float
    notes: tuple[str, ...] = ()
    cuts_clips: bool = False  # long clips are cropped or cut into windows
    labels: str = ""  # the sizes of the closed sets, by template
    questions: int = 1  # about each clip
    longest_stretch: float = 1.0  # of a clip by augmentation, see ``RecipeEntry``
    mean_stretch: float = 1.0
    undecodable: str = ""  # why clips cannot be decoded, where none can of those that were tried

    @property
    def augmented_seconds(self) -> float:
        """Mean clip length as it is expected after augmentation."""
        return self.seconds * self.mean_stretch

    def compute_cost(self, per_example: float) -> float:
        """Return what an average row takes of the budget of a micro-batch, in seconds, as batching counts it."""
        return compute_audio_cost(self.seconds, self.questions, per_example, self.longest_stretch)


@dataclass(frozen=True)
class AverageClip:
    """The average clip.

    Args:
        seconds: of audio, as expected after augmentation. question: tokens of it. answer: tokens of the answers with
            their end. questions: about the clip.
        stretch: ratio of the length that the budget counts, the longest that augmentation can make, to ``seconds``.
    """

    seconds: float
    question: int
    answer: int
    questions: float = 1.0
    stretch: float = 1.0

    @property
    def budget_seconds(self) -> float:
        """Seconds of audio at the longest, by which micro-batches are filled."""
        return self.seconds * self.stretch


def check_entry(entry: RecipeEntry, longest: float = math.inf) -> CheckedEntry:
    """Render the first rows of a source with the templates of an entry and read their audio headers.

    The answers of an entry are as long as those to all of its templates together.

    Args:
        longest: seconds of the longest clip of the run, to which clips are cut where `long_clips` states no length.

    Raises:
        UserError: with the reason of the first row, when a template can use none of them; naming a column that none of
            them has.
    """
    entry, source = open_entry(entry)
    read = list(islice(source.rows(), ROWS_READ))
    rows = [row for row in read if isinstance(row, Row)]
    if not read:
        raise UserError(
            f"dataset {entry.dataset.name}, split {entry.split}: no rows (is the split's `keep` right?)"
        )
    skipped = describe_left_out(source.left_out)
    notes = [f"skipped: {skipped}"] if skipped else []
    rendered = []
    for template in entry.templates:
        refuse_missing_columns(rows, entry, template)
        rendered.append(render_rows(read, entry, template, longest))
        notes += note_class_numbers(template, [answer for _, answer in rendered[-1]])
        notes += note_labels_scored_as_one(template)
        notes += note_time_columns(rows, entry.dataset, template)
    clips = decode_some_clips(rows, SECONDS_DECODED)
    spread = decode_some_clips(iterate_spread_rows(source, entry.dataset, len(read)), SECONDS_DECODED)
    notes += [*clips.describe(), *describe_broken_spread(spread)]
    notes += note_cut_answers(entry)
    notes += entry.augmenter.list_notes() if entry.augmenter is not None else []
    return CheckedEntry(
        entry.name,
        entry.split,
        source.size,
        fmean(seconds for seconds, _ in rendered[0]),
        sum(fmean(count_words(answer) for _, answer in usable) for usable in rendered),
        tuple(dict.fromkeys(notes)),
        entry.long_clips is not None and entry.long_clips.how != "skip",
        ", ".join(str(len(labels)) if labels else "open" for labels in entry.label_sets),
        len(entry.templates),
        entry.longest_stretch,
        entry.mean_stretch,
        find_undecodable(clips, spread),
    )


def render_rows(
    read: Sequence[Row | RowError], entry: RecipeEntry, template: Template, longest: float
) -> list[tuple[float, str]]:
    """Return (seconds of all clips, the answer) of the rows that can be used.

    Raises:
        UserError: with the reason of the first row, when none of them can be used, or asked with one of the wordings.
    """
    usable, reasons = [], [str(row) for row in read if isinstance(row, RowError)]
    for row in read:
        if isinstance(row, Row):
            try:
                answer = entry.render_question(row, template).answer
                lengths = measure_clips(row, LongClips("windows"), math.inf)
                usable.append((sum(shorten_clips(lengths, entry.long_clips, longest)), answer))
            except RowError as problem:
                reasons.append(f"{row.key}: {problem}")
    if not usable:
        raise UserError(
            f"dataset {entry.dataset.name}, split {entry.split}: none of the first {len(read)} rows can be used "
            f"({reasons[0]})"
        )
    if isinstance(entry, Entry):  # training draws any of the wordings, evaluation takes the first
        refuse_broken_wordings(read, entry, template)
    return usable


def refuse_broken_wordings(read: Sequence[Row | RowError], entry: Entry, template: Template) -> None:
    """Refuse a wording after the first that can be rendered for none of the rows.

    Raises:
        UserError: with the reason of the first row.
    """
    rows = [row for row in read if isinstance(row, Row)]
    for prompt in template.prompts[1:]:
        wording, reason = replace(template, prompts=(prompt,)), ""
        for row in rows:
            try:
                entry.render_question(row, wording)
                break
            except RowError as problem:
                reason = reason or f"{row.key}: {problem}"
        else:
            raise UserError(
                f"dataset {entry.dataset.name}, split {entry.split}: a prompt of template {template.task} fits none "
                f"of the first {len(read)} rows ({reason})"
            )


def shorten_clips(lengths: Sequence[float], long_clips: LongClips | None, longest: float) -> list[float]:
    """Return the lengths of a row's clips in seconds as crops and windows have them."""
    if long_clips is None or long_clips.how == "skip":
        return list(lengths)
    return [min(length, long_clips.seconds or longest) for length in lengths]


def note_cut_answers(entry: RecipeEntry) -> list[str]:
    """Return a line about parts of clips that are trained with answers to the whole clips."""
    texts = [t.task for t in entry.templates if t.scoring.metric in JOINED_METRICS]
    if (
        not isinstance(entry, Entry)
        or entry.long_clips is None
        or entry.long_clips.how == "skip"
        or not texts
    ):
        return []
    return [
        f"long_clips: {entry.long_clips.how}: parts of a clip are trained with the answer to the "
        f"whole clip, which for {', '.join(texts)} may describe other parts; provide such data as "
        "segments with their own texts"
    ]


def refuse_missing_columns(rows: Sequence[Row], entry: RecipeEntry, template: Template) -> None:
    """Refuse a template or card that uses a column which none of the first rows has.

    Raises:
        UserError: naming the column and those that there are.
    """
    if not rows:
        return
    stored = {str(name) for row in rows for name in row.columns}
    listed = ", ".join(sorted(stored)) or "none"
    card = entry.dataset
    for name in sorted(set(card.labels) - stored - set(card.columns)):
        near = suggest_name(name, stored | set(card.columns))
        raise UserError(f"{card.path}: labels.{name}: the rows have no such column{near}; they have {listed}")
    for name in sorted(set(template.inputs) - set(entry.constants)):
        text = card.columns.get(name)
        if text is None and name not in stored:
            raise UserError(
                f"dataset {card.name}: template {template.task} needs {name}{suggest_name(name, stored)}, but the "
                f"columns are {listed}; add it under `columns` of the card"
            )
        for used in text.list_missing(stored) if text is not None else ():
            first_of = suggest_first_of(text.source, stored) if isinstance(text, Text) else ""
            raise UserError(
                f"{card.path}: columns.{name}: uses '{used}'{suggest_name(used, stored)}, but the columns of the rows "
                f"are {listed}{first_of}"
            )


def note_time_columns(rows: Sequence[Row], card: DatasetCard, template: Template) -> list[str]:
    """Return a line about columns that look like times of a segment, where nothing makes use of them."""
    stored = {str(name) for row in rows for name in row.columns}
    used = set(template.inputs).union(*(text.names for text in card.columns.values()))
    columns = list_unused_time_columns(stored, card.segment, used) if card.segment.automatic else []
    if not columns:
        return []
    return [
        f"clips are used whole although there are columns {', '.join(columns)}; name the columns of "
        "the segment times under `segment` in the card, or write `segment: none` there"
    ]


def count_words(text: str) -> int:
    """Return the words of a text; in scripts without blanks between words, its characters."""
    return len(separate_units(text, "auto").split())


def note_class_numbers(template: Template, answers: Sequence[str]) -> list[str]:
    """Return a line about answers that may be numbers of classes."""
    if template.labels is not None or not all(answer.strip().isdigit() for answer in answers):
        return []
    shown = ", ".join(dict.fromkeys(answers[:5]))
    return [
        f"all answers seen are whole numbers ({shown}); if they are class numbers, map them to "
        "names under `columns` in the card"
    ]


def note_labels_scored_as_one(template: Template) -> list[str]:
    """Return a line about labels that differ in more than their case, and are the same when answers are scored."""
    groups: dict[str, list[str]] = {}
    for label in template.labels or ():
        groups.setdefault(normalize_text(label, template.scoring.normalize), []).append(label)
    equal = [group for group in groups.values() if len({label.lower() for label in group}) > 1]
    if not equal:
        return []
    more = f" (and {len(equal) - 1:,} more)" if len(equal) > 1 else ""
    return [
        f"scoring.normalize: {template.scoring.normalize} of template {template.task} makes labels the same: "
        f"{', '.join(equal[0])}{more}, so an answer with one of them counts as the other; set it to lowercase or none"
    ]


def estimate_average_clip(recipe: Recipe, longest: float = math.inf) -> AverageClip:
    """Return the average example of a recipe by the first rows of its sources.

    Args:
        longest: see ``check_entry``.

    Raises:
        UserError: for rows that cannot be used.
    """
    seen = [check_entry(entry, longest) for entry in recipe.train]
    shares = recipe.compute_train_shares()
    seconds = sum(share * p.augmented_seconds for share, p in zip(shares, seen, strict=True))
    most = sum(share * p.seconds * p.longest_stretch for share, p in zip(shares, seen, strict=True))
    words = sum(share * p.answer_words for share, p in zip(shares, seen, strict=True))
    questions = sum(share * p.questions for share, p in zip(shares, seen, strict=True))
    stretch = most / seconds if seconds else 1.0
    return AverageClip(seconds, QUESTION, round(words * TOKENS_PER_WORD) + 1, questions, stretch)
