"""What all rows of a recipe say: which cannot be used and why, which come twice, which are trained and tested on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path

from rich.table import Table

from uniaudio.console import WorkProgress
from uniaudio.data.column_names import IDS, simplify_name
from uniaudio.data.encoded_audio import FilePart
from uniaudio.data.labels import describe_equal_spellings
from uniaudio.data.long_clips import read_row_seconds
from uniaudio.data.placeholders import describe_placeholders, find_placeholders
from uniaudio.data.prompt_tokens import ChatFormat, check_text
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import Entry, RecipeEntry, open_entry
from uniaudio.data.skipped_rows import BrokenShard
from uniaudio.data.sources.base import BROKEN_SHARD, IndexedSource, Row, Source
from uniaudio.data.template_file import JOINED_METRICS
from uniaudio.data.text_rows import read_text_rows, spread_rows
from uniaudio.errors import RowError, UserError, escape_text

COUNTED_AT_ONCE = 2000  # rows between two updates of the bar
SHOWN = 3  # examples of a problem
SHOWN_REASONS = 8  # kinds of a problem of an entry
HEADERS = 100  # of clips whose rows do not state their length
LENGTHS = (1.0, 5.0, 10.0, 30.0, 60.0)  # seconds, between the shares that are shown
MANY_PASSES = 2  # over the rows of a set in the pools of all streams, from which on it is noted
CLIP = "clip"  # what a row is known by, beside its ids

Identity = tuple[str, str]  # what a row is known by, and its value


@dataclass
class RowFindings:
    """What was seen of all rows of an entry.

    Args:
        read: rows. sample: says which part of the split they are, where it is not all.
        unusable: reasons with their details, where many rows share one; examples: keys of rows, by the same.
        seen: the answer of a row by what the row is known by. repeated: rows with the clip or id, and the answer, of
            an earlier one.
        answers: how often each of a closed set occurs, of the first template that has one. labels: the set.
        placeholders: rows whose label may stand for none, see ``describe_placeholders``.
        lengths: of clips in seconds. are_measured: read from the headers of a few, as rows do not state them.
        format: of the decoder, where its tokenizer is there.
        is_file: clips are files, whose names are theirs alone; names within archives and tables may come again.
        shards: of the source; 0 where it has none. broken: those that cannot be read. lost_share: share of all rows
            that they hold, estimated as in training.
    """

    entry: RecipeEntry
    is_file: bool = True
    shards: int = 0
    broken: int = 0
    lost_share: float = 0.0
    read: int = 0
    used: int = 0
    sample: str = ""
    unusable: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    seen: dict[Identity, str] = field(default_factory=dict)
    repeated: dict[str, list[str]] = field(default_factory=dict)
    answers: Counter[str] = field(default_factory=Counter)
    placeholders: Counter[tuple[str, str]] = field(default_factory=Counter)
    labels: tuple[str, ...] = ()
    lengths: list[float] = field(default_factory=list)
    are_measured: bool = False
    format: ChatFormat | None = None

    @property
    def unusable_share(self) -> float:
        """Share of the rows read that no template can use."""
        return 1 - self.used / self.read if self.read else 0.0

    def describe_reasons(self) -> list[str]:
        """Return a sentence for each reason why rows cannot be used, the most frequent first."""
        lines = []
        for (reason, detail), count in self.unusable.most_common(SHOWN_REASONS):
            keys = ", ".join(map(escape_text, self.examples[reason, detail]))
            more = " ..." if count > SHOWN else ""
            lines.append(f"{count:,} {reason}{f' ({escape_text(detail)})' if detail else ''}: {keys}{more}")
        if (left := len(self.unusable) - SHOWN_REASONS) > 0:
            lines.append(f"and {left:,} more kinds")
        return lines

    def describe_lengths(self) -> str:
        """Return the shares of clips by length."""
        if not self.lengths:
            return "?"
        bounds = (0.0, *LENGTHS, float("inf"))
        parts = []
        for low, high in pairwise(bounds):
            count = sum(low < length <= high for length in self.lengths)
            if count:
                name = f">{low:g} s" if high == float("inf") else f"{low:g}-{high:g} s"
                parts.append(f"{name} {count / len(self.lengths):.0%}")
        return ", ".join(parts)


def read_all_rows(
    entry: RecipeEntry, progress: WorkProgress, format: ChatFormat | None = None
) -> RowFindings:
    """Render every row of an entry with its templates; no clip is decoded.

    Args:
        format: of the decoder, which cannot use every text; None where its tokenizer is not there.

    Raises:
        UserError: when the source cannot be opened.
    """
    entry, source = open_entry(entry)
    texts = read_text_rows(source, entry.dataset)
    is_file = isinstance(source, IndexedSource)
    shards = 0 if isinstance(source, IndexedSource) else len(source.shards)
    findings = RowFindings(entry, is_file, shards, format=format)
    findings.labels = next((labels for labels in entry.label_sets if labels), ())
    work = progress.begin(f"reading {entry.name}, {entry.split}", texts.count)
    for number, row in enumerate(texts, 1):
        if number % COUNTED_AT_ONCE == 0:
            progress.count(work, COUNTED_AT_ONCE)
        add_row(findings, row)
    findings.sample = texts.sample
    progress.update(work, visible=False)
    if not findings.lengths:
        findings.are_measured = True
        findings.lengths = sample_clip_lengths(source)
    return findings


def add_row(findings: RowFindings, row: Row | RowError) -> None:
    """Count a row."""
    findings.read += 1
    if isinstance(row, RowError):
        note_problem(findings, row, row.key)
        may_pass = isinstance(row.__cause__, OSError)  # training tries again
        if row.reason == BROKEN_SHARD and not may_pass:
            name = findings.entry.dataset.name
            skip = BrokenShard.estimate(name, row.key, findings.shards, row.rows_before, row)
            findings.broken += 1
            findings.lost_share = min(1.0, findings.lost_share + skip.share)
        return
    answer, problem = "", None
    placeholders: set[tuple[str, str]] = set()  # several templates may answer with one column
    for template in findings.entry.templates:
        try:
            rendered = findings.entry.render_question(row, template)
            if findings.format is None:
                check_text(rendered.answer)
            else:
                findings.format.check_texts(rendered.prompt, rendered.answer)
        except RowError as error:
            problem = error
            continue
        answer = answer or rendered.answer
        if template.scoring.metric not in JOINED_METRICS:
            labels = [label for text in rendered.references for label in template.split_labels(text)]
            placeholders |= find_placeholders(row.columns, template, labels)
        if template.labels and template.labels == findings.labels:
            findings.answers.update(
                label for text in rendered.references for label in template.split_labels(text)
            )
    findings.placeholders.update(placeholders)
    if problem is not None:
        note_problem(findings, problem, row.key)
    if not answer:
        return
    findings.used += 1
    findings.lengths += [
        length
        for ref in row.audio
        if (length := ref.read_seconds() if ref.span is not None else ref.seconds) is not None
    ]
    for identity in list_identities(row):
        earlier = findings.seen.get(identity)
        findings.seen.setdefault(identity, answer)
        if earlier is not None and (identity[0] != CLIP or earlier == answer):
            findings.repeated.setdefault(identity[0], []).append(identity[1])


def note_problem(findings: RowFindings, problem: RowError, key: str) -> None:
    """Count a row that cannot be used; of reasons that many rows share word by word, the detail is kept."""
    detail = problem.detail if problem.reason in ("unknown label", "empty answer") else ""
    findings.unusable[problem.reason, detail] += 1
    keys = findings.examples.setdefault((problem.reason, detail), [])
    if len(keys) < SHOWN:
        is_named = problem.detail.startswith(f"{key}: ")
        shown = problem.detail if is_named else f"{key} ({problem.detail})"
        keys.append(key if detail or problem.detail in ("", key) else shown)


def list_identities(row: Row) -> list[Identity]:
    """Return what a row is known by: its clips, where they are files or have names, and its ids."""
    clips = []
    for ref in row.audio:
        if isinstance(ref.source, Path):
            place = str(ref.source)
        elif isinstance(ref.source, FilePart):
            place = f"{ref.source.path}:{ref.source.offset}"
        else:
            break
        clips.append(place if ref.span is None else f"{place} from {ref.span[0]:g} to {ref.span[1]:g} s")
    known = [(CLIP, " + ".join(clips))] if clips and len(clips) == len(row.audio) else []
    ids = [(name, row.columns[name]) for name in row.columns if simplify_name(name) in IDS]
    return known + [(name, str(value)) for name, value in ids if isinstance(value, str | int)]


def sample_clip_lengths(source: Source) -> list[float]:
    """Return the lengths of a few clips, spread over the source where that is possible."""
    rows = (
        spread_rows(source, HEADERS)
        if isinstance(source, IndexedSource)
        else islice(source.rows(), HEADERS // 5)
    )
    lengths: list[float] = []
    for row in rows:
        if isinstance(row, Row):
            with suppress(RowError):
                lengths += read_row_seconds(row)
    return lengths


def note_repeated_rows(findings: RowFindings) -> list[str]:
    """Return a sentence for each kind of rows that come twice in an entry."""
    notes = []
    for name, values in findings.repeated.items():
        if name != CLIP and len(values) > findings.used / 2:
            continue  # no id of rows after all, such as that of a speaker
        what = (
            "repeat the clip and the answer of an earlier row"
            if name == CLIP
            else f"repeat the `{name}` of an earlier row"
        )
        notes.append(f"{len(values):,} rows {what}: {show_values(values)}")
    return notes


def note_shared_rows(train: RowFindings, test: RowFindings) -> list[str]:
    """Return a sentence for each kind of rows of an evaluation set that are trained on, too.

    Names within tables and archives, and ids, may begin anew in every split. They mean the same row only where all
    rows that share one have the same answer, too.
    """
    notes = []
    shared = [identity for identity in test.seen if identity in train.seen]
    for name in dict.fromkeys(name for name, _ in shared):
        values = [identity[1] for identity in shared if identity[0] == name]
        are_same = all(train.seen[name, value] == test.seen[name, value] for value in values)
        if (name == CLIP and train.is_file and test.is_file) or (
            are_same and train.entry.dataset.path == test.entry.dataset.path
        ):
            what = "clips" if name == CLIP else f"values of `{name}`"
            notes.append(
                f"{len(values):,} of {test.used:,} {what} are also trained on in "
                f"{train.entry.name}, split {train.entry.split}, so scores on them mean little: "
                f"{show_values(values)}"
            )
    return notes


def show_values(values: Sequence[str]) -> str:
    """Return the first of some values."""
    return ", ".join(map(escape_text, values[:SHOWN])) + (" ..." if len(values) > SHOWN else "")


def note_labels(findings: RowFindings) -> list[str]:
    """Return sentences about labels that no row has, that are one but for their case, and that may stand for none."""
    notes = []
    unseen = [label for label in findings.labels if label not in findings.answers]
    if unseen and not findings.sample and findings.used:
        notes.append(
            f"{len(unseen):,} of {len(findings.labels):,} labels do not occur in any row: "
            f"{show_values(unseen)}"
        )
    if spellings := describe_equal_spellings(findings.labels):
        notes.append(escape_text(spellings))
    return notes + [escape_text(sentence) for sentence in describe_placeholders(findings.placeholders)]


def note_skipped_lengths(findings: RowFindings, longest: float, what: str) -> list[str]:
    """Return a sentence about clips that are skipped because they are long.

    Args:
        longest: seconds of a clip that is trained on. what: the setting that says so.
    """
    entry = findings.entry
    if not isinstance(entry, Entry) or (entry.long_clips is not None and entry.long_clips.how != "skip"):
        return []
    share = sum(length > longest for length in findings.lengths) / max(1, len(findings.lengths))
    if not share:
        return []
    return [
        f"{share:.1%} of the clips are longer than {longest:g} s ({what}) and are skipped; see `long_clips`"
    ]


def refuse_many_unusable(findings: RowFindings, most: float) -> None:
    """Refuse a training set of which more rows cannot be used than a run accepts.

    A run draws a few rows before it looks at their share; here all of them were read, however few they are.

    Raises:
        UserError: with the reasons.
    """
    if findings.unusable_share + findings.lost_share > most:
        entry, read = findings.entry, findings.read - findings.broken
        unusable = f"{read - findings.used:,} of {read:,}"
        what = f"{unusable} rows cannot be used"
        if findings.broken:
            lost = f"about {findings.lost_share:.1%} of its rows are in broken shards"
            what = f"{lost}, and {unusable} others cannot be used"
        raise UserError(
            f"dataset {entry.dataset.name}, split {entry.split}: {what}, more than data.max_skipped_share allows "
            f"({most:g}): {'; '.join(findings.describe_reasons())}"
        )


def build_rows_table(stage: str, findings: Sequence[RowFindings]) -> Table:
    """Lay out one row per line of the recipe."""
    table = Table(title=f"stage {stage}: all rows", title_justify="left")
    for column in ("dataset:template", "split", "read", "unusable", "labels seen", "clip lengths"):
        right = column in ("read", "unusable", "labels seen")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for one in findings:
        seen = f"{len(one.answers):,} of {len(one.labels):,}" if one.labels else "open"
        about = "~" if one.are_measured else ""
        unusable = one.read - one.used
        table.add_row(
            one.entry.name,
            one.entry.split,
            f"{one.read:,}{' *' if one.sample else ''}",
            f"{unusable:,}" if unusable else "",
            seen,
            f"{about}{one.describe_lengths()}",
        )
    return table


def note_repeated_draws(findings: RowFindings, pool: int, streams: int) -> list[str]:
    """Return a sentence about a training set that the pools of all streams hold several times.

    Draws of a pool are sorted by length, so the copies of a clip are neighbours and share a micro-batch.

    Args:
        pool, streams: `data.pool` and `data.streams` of the run.
    """
    entry = findings.entry
    if not isinstance(entry, Entry) or findings.sample or not findings.used:
        return []
    passes = pool * streams * entry.share / findings.used
    if passes < MANY_PASSES:
        return []
    fitting = max(1, round(pool / passes))
    return [
        f"with data.pool {pool} and data.streams {streams}, a row is drawn about {passes:.0f} times "
        "before clips are sorted by length, so copies of a clip end up in one micro-batch; set "
        f"data.pool to {fitting}"
    ]


def describe_problems(
    recipe: Recipe,
    findings: Mapping[int, RowFindings],
    longest: float,
    what: str,
    pool: int = 0,
    streams: int = 0,
) -> list[str]:
    """Return the problems of all lines of a recipe, a sentence each.

    Args:
        findings: by the identity of entries. longest, what: see ``note_skipped_lengths``.
        pool, streams: see ``note_repeated_draws``.
    """
    lines = []
    for entry in (*recipe.train, *recipe.evaluate):
        one = findings[id(entry)]
        notes = [f"only {one.sample} are read"] if one.sample else []
        notes += [f"skipped: {reason}" for reason in one.describe_reasons()]
        notes += [*note_repeated_rows(one), *note_labels(one), *note_skipped_lengths(one, longest, what)]
        notes += note_repeated_draws(one, pool, streams)
        if not isinstance(entry, Entry):
            for trained in recipe.train:
                notes += note_shared_rows(findings[id(trained)], one)
        lines += [f"{entry.name}, split {entry.split}: {note}" for note in notes]
    return lines
