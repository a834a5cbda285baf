"""``uniaudio new``: from data to the four files of a task, with what was seen of the data."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from uniaudio.build.run_config import open_run
from uniaudio.checks.recipe import check_entry
from uniaudio.config.search_paths import find_shipped_root
from uniaudio.console import WorkProgress, make_console
from uniaudio.data.card import DatasetCard, make_card
from uniaudio.data.card_file import CardFile
from uniaudio.data.conditions import KEY
from uniaudio.data.field_values import Classes
from uniaudio.data.recipe import load_recipe
from uniaudio.data.row_clips import read_row_seconds
from uniaudio.data.scaffold.answer_column import Answer, choose_answer
from uniaudio.data.scaffold.divisions import Division, divide_rows
from uniaudio.data.scaffold.layouts import Layout, find_layout
from uniaudio.data.scaffold.profiles import ColumnProfile, profile_columns
from uniaudio.data.scaffold.task_files import (
    NOT_STATED,
    TaskDescription,
    render_dataset_card,
    render_recipe,
    render_template,
)
from uniaudio.data.sources.base import IndexedSource, Row, Source
from uniaudio.data.sources.folder_walk import describe_left_out
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.data.text_rows import is_slow, read_text_rows
from uniaudio.errors import RowError, UserError, escape_text
from uniaudio.estimate.starting_config import (
    LONGEST,
    SHORT,
    HostMachine,
    choose_models,
    choose_sizes,
    render_config,
)

NAME = re.compile(r"\w[\w.-]{0,99}")
MEASURED, MEASURED_FAR = 200, 20  # clips of a split whose length is read; over a network
COUNTED_AT_ONCE = 1000  # rows between two updates of the bar
SHOWN_LABELS, SHOWN_COLUMNS = 5, 12
FILES = (
    "templates",
    "data_recipes/datasets",
    "data_recipes",
    "configs",
)  # folders of the files, in their order


@dataclass
class SplitRows:
    """The rows of a stored split, with what was read of them.

    Args:
        rows: number in the data, None where nobody knows. lengths: of some clips, in seconds.
        errors: rows that cannot be used, by reason. measured: clips that were looked at, for the lengths.
    """

    columns: list[Mapping[str, Any]] = field(default_factory=list)
    rows: int | None = None
    sample: str = ""
    lengths: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    measured: int = 0
    unreadable: int = 0
    left_out: str = ""
    classes: Mapping[str, Classes] = field(default_factory=dict)


@dataclass(frozen=True)
class NewTask:
    """The options of ``uniaudio new``, see its help."""

    name: str
    data: str
    text: str | None = None
    label: str | None = None
    question: str | None = None
    encoder: str | None = None
    decoder: str | None = None
    config: str | None = None
    out: Path = Path()
    force: bool = False

    @property
    def command(self) -> str:
        """The command as it was typed, about."""
        words = ["uniaudio", "new", self.name, "--data", self.data]
        for option in ("text", "label"):
            if (value := getattr(self, option)) is not None:
                words += [f"--{option}", value]
        return shlex.join(words)


def create_task(wanted: NewTask, console: Console | None = None) -> Path:
    """Look at data, write template, card, recipe and run config, and print what was seen and the next commands.

    Returns:
        The path of the run config.

    Raises:
        UserError: when files are there already, the data cannot be loaded, or it cannot be told what to learn.
    """
    console = console or make_console()
    paths = name_files(wanted)
    machine = HostMachine.measure()
    models = choose_models(machine, wanted.encoder, wanted.decoder)
    layout = find_layout(wanted.data, wanted.config)
    splits = {split: read_split(layout, split, wanted.data, console) for split in layout.splits}
    profiles = profile_columns(row for split in splits.values() for row in split.columns)
    for column in hidden_columns(layout, profiles):
        del profiles[column]
    where = f"--data {wanted.data}"
    refuse_empty(profiles, splits, where)
    answer = choose_answer(profiles, wanted.label, wanted.text, where)
    answer = close_labels(answer, splits)
    division = divide(layout, splits, profiles, answer)
    task = describe_task(wanted, layout, splits, profiles, answer, division, paths)
    sizes = choose_sizes(
        machine,
        [length for split in splits.values() for length in split.lengths],
        count_training_rows(task),
        share_of_unusable(splits, answer),
        task.windows is not None,
    )
    lengths = [length for split in splits.values() for length in split.lengths]
    is_short = bool(lengths) and float(np.median(lengths)) < SHORT
    texts = (
        render_template(task),
        render_dataset_card(task),
        render_recipe(task),
        render_config(wanted.name, *models, machine, sizes, is_short, division.test is not None),
    )
    write_task_files(paths, texts)
    show_task(task, splits, profiles, paths, console)
    return paths[-1]


def name_files(wanted: NewTask) -> list[Path]:
    """Return the four files.

    Raises:
        UserError: for a name that no file can have, and for files that are there.
    """
    stem = re.sub(r"\.ya?ml$", "", wanted.name)
    if not NAME.fullmatch(wanted.name) or stem != wanted.name:
        near = re.sub(r"\W+", "_", stem).strip("_")[:40] or "my_task"
        raise UserError(f"NAME '{wanted.name[:40]}': take up to 100 letters, digits, _ and -, such as {near}")
    if any((find_shipped_root() / folder / f"{wanted.name}.yaml").is_file() for folder in FILES):
        raise UserError(f"NAME '{wanted.name}': files of this name come with uniaudio; take my_{wanted.name}")
    paths = [wanted.out / folder / f"{wanted.name}.yaml" for folder in FILES]
    there = [str(path) for path in paths if path.exists()]
    if there and not wanted.force:
        raise UserError(f"{', '.join(there)} would be overwritten; take another NAME, or --force to replace")
    return paths


def make_trial_card(layout: Layout, split: str, place: str) -> DatasetCard:
    """Return the card of a stored split before any is written; messages name the option in its place."""
    content = {
        "dataset": "new",
        "load": layout.load,
        "license": NOT_STATED,
        "audio": layout.audio,
        "splits": {split: {"name": split}},
    }
    return make_card(CardFile.model_validate(content), Path(f"--data {place}"))


def read_split(layout: Layout, split: str, place: str, console: Console) -> SplitRows:
    """Read what the rows of a stored split say, and the lengths of some clips.

    Raises:
        UserError: when the split cannot be opened.
    """
    card = make_trial_card(layout, split, place)
    source = open_source(card, split)
    texts = read_text_rows(source, card)
    read = SplitRows(rows=source.size)
    with WorkProgress(console, "rows") as progress:
        work = progress.begin(f"reading {split}", texts.count)
        for number, row in enumerate(texts, 1):
            if number % COUNTED_AT_ONCE == 0:
                progress.count(work, COUNTED_AT_ONCE)
            if isinstance(row, Row):
                read.columns.append({KEY: row.key, **row.columns})
            else:
                read.errors[row.reason] += 1
    read.sample = texts.sample
    if read.rows is None and not read.sample:
        read.rows = len(read.columns) + read.errors.total()
    read.classes = source.classes
    read.left_out = describe_left_out(source.left_out)
    for row in choose_measured_rows(source, card):
        read.measured += 1
        try:
            if not isinstance(row, Row):
                raise row
            read.lengths.append(sum(read_row_seconds(row)))
        except RowError as problem:
            read.unreadable += 1
            if not read.errors[problem.reason]:
                read.errors[problem.reason] = 0  # named, but not how many there are
    return read


def choose_measured_rows(source: Source, card: DatasetCard) -> Iterator[Row | RowError]:
    """Yield rows, with their clips, whose lengths speak for all."""
    if isinstance(source, IndexedSource):
        number = min(MEASURED, source.size)
        return (source.read_row_or_error(i * source.size // number) for i in range(number))
    return islice(source.rows(), MEASURED_FAR if is_slow(source.shards, card) else MEASURED)


def hidden_columns(layout: Layout, profiles: Mapping[str, ColumnProfile]) -> list[str]:
    """Return the columns that are no part of what rows say: the clip itself, and the key of a row."""
    return [name for name in profiles if name in (KEY, layout.audio)]


def refuse_empty(profiles: Mapping[str, ColumnProfile], splits: Mapping[str, SplitRows], where: str) -> None:
    """Refuse data without rows, or whose rows say nothing.

    Raises:
        UserError: with what there is, and what is missing.
    """
    rows = sum(len(split.columns) for split in splits.values())
    if not rows:
        reasons = Counter[str]()
        for split in splits.values():
            reasons.update(split.errors)
        raise UserError(f"{where}: no row can be read ({', '.join(reasons) or 'there are none'})")
    if not set(profiles) - {"file_name"}:
        passed = [split.left_out for split in splits.values() if split.left_out]
        raise UserError(
            f"{where}: holds {rows:,} recording(s), but nothing says what they are; put them into a folder for each "
            "label, a .txt with the text beside each, or write a metadata.csv beside them with the columns file_name "
            f"and label (or text){'; passed over: ' + ', '.join(passed) if passed else ''}"
        )
    unreadable = sum(split.unreadable for split in splits.values())
    if unreadable and unreadable == sum(split.measured for split in splits.values()):
        reason = next(iter(reason for split in splits.values() for reason in split.errors))
        raise UserError(f"{where}: none of the first {unreadable} recordings can be read ({reason})")


def close_labels(answer: Answer, splits: Mapping[str, SplitRows]) -> Answer:
    """Return the answer with the classes that the data name; without a closed set where only a sample was read."""
    from dataclasses import replace

    if answer.kind not in ("label", "tags"):
        return answer
    for split in splits.values():
        if answer.column in split.classes:
            return replace(answer, labels=tuple(str(name) for name in split.classes[answer.column].values))
    return replace(answer, labels=()) if any(split.sample for split in splits.values()) else answer


def divide(
    layout: Layout, splits: Mapping[str, SplitRows], profiles: Mapping[str, ColumnProfile], answer: Answer
) -> Division:
    """Divide the rows into train and test."""
    rows = {name: split.columns for name, split in splits.items()}
    labels = None
    if answer.kind == "label":
        labels = {name: [str(row.get(answer.column)) for row in read] for name, read in rows.items()}
    columns = {name for read in rows.values() for row in read[:1] for name in row}
    named = re.search(r"\{\{ (\w+) \}\}", layout.audio)
    first = next(row for read in rows.values() for row in read[:1])
    candidates = (named[1] if named else layout.audio, "file_name", "recording", "id")
    clip = next((name for name in candidates if name in columns and isinstance(first.get(name), str)), None)
    return divide_rows(rows, profiles, labels, clip)


def describe_task(
    wanted: NewTask,
    layout: Layout,
    splits: Mapping[str, SplitRows],
    profiles: Mapping[str, ColumnProfile],
    answer: Answer,
    division: Division,
    paths: Sequence[Path],
) -> TaskDescription:
    """Put together what the files say."""
    lengths = [length for split in splits.values() for length in split.lengths]
    rows = {name: count_split_rows(name, content, splits) for name, content in division.splits.items()}
    training = [rows[name] for name in division.train]
    hours = None
    if lengths and None not in training:
        hours = sum(filter(None, training)) * float(np.mean(lengths)) / 3600
    can_cut = answer.kind in ("label", "tags", "number")
    windows = LONGEST if can_cut and lengths and max(lengths) > LONGEST else None
    return TaskDescription(
        name=wanted.name,
        layout=layout,
        load=make_portable_load(layout.load, paths[1].parent, wanted.out),
        answer=answer,
        division=division,
        question=wanted.question,
        rows=rows,
        hours=hours,
        windows=windows,
        columns=tuple(profiles),
        command=wanted.command,
    )


def make_portable_load(load: Mapping[str, Any], folder: Path, project: Path) -> dict[str, Any]:
    """Return `load` with a path relative to the card where the data lie in the project's folder."""
    (kind, place), *more = load.items()
    if Path(place).is_absolute() and Path(place).is_relative_to(project.absolute()):
        place = os.path.relpath(place, folder.absolute())
    return {kind: place, **dict(more)}


def count_split_rows(name: str, content: Mapping[str, Any], splits: Mapping[str, SplitRows]) -> int | None:
    """Return the rows of a split of the card; None where they are not known."""
    stored = splits[content.get("name", name if name in splits else "train")]
    if "keep" not in content:
        return stored.rows
    from uniaudio.data.conditions import Condition

    keep = Condition(content["keep"], f"splits.{name}.keep")
    kept = 0
    for row in stored.columns:
        with suppress(UserError, RowError):
            kept += keep.is_true(row)
    if not stored.sample:
        return kept
    return None if stored.rows is None else round(kept / len(stored.columns) * stored.rows)


def count_training_rows(task: TaskDescription) -> int | None:
    """Return the rows that are trained on; None where they are not known."""
    rows = [(task.rows or {}).get(name) for name in task.division.train]
    return None if None in rows else sum(filter(None, rows))


def share_of_unusable(splits: Mapping[str, SplitRows], answer: Answer) -> float:
    """Return the share of rows without an answer or that cannot be read, and of clips that cannot be opened."""
    rows = sum(len(split.columns) + split.errors.total() for split in splits.values())
    profile = profile_columns(
        {answer.column: row.get(answer.column)} for split in splits.values() for row in split.columns
    )
    filled = profile[answer.column].filled if answer.column in profile else 0
    measured = max(1, sum(split.measured for split in splits.values()))
    unreadable = sum(split.unreadable for split in splits.values()) / measured
    return min(1.0, 1 - filled / max(1, rows) + unreadable)


def write_task_files(paths: Sequence[Path], texts: Sequence[str]) -> None:
    """Write the files and read them as any command would; where one has a mistake, none is left behind.

    Raises:
        UserError: as ``load_recipe`` and ``open_run``.
    """
    before = {path: path.read_text(encoding="utf-8") if path.exists() else None for path in paths}
    try:
        for path, text in zip(paths, texts, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        open_run(str(paths[-1]))
        recipe = load_recipe(str(paths[2]))
        for entry in (*recipe.train, *recipe.evaluate):
            check_entry(entry)
    except BaseException:
        for path, old in before.items():
            if old is None:
                path.unlink(missing_ok=True)
            else:
                path.write_text(old, encoding="utf-8")
        raise


def show_task(
    task: TaskDescription,
    splits: Mapping[str, SplitRows],
    profiles: Mapping[str, ColumnProfile],
    paths: Sequence[Path],
    console: Console,
) -> None:
    """Print what was seen, what was chosen, and the next commands."""

    def say(text: str) -> None:
        console.print(escape_text(text), soft_wrap=True)

    lengths = [length for split in splits.values() for length in split.lengths]
    clips = f", clips of {min(lengths):.1f} to {max(lengths):.1f} s" if lengths else ""
    counts = ", ".join(f"{name} {describe_count(rows)}" for name, rows in (task.rows or {}).items())
    say(f"data: {task.layout.what}{clips}")
    rows_read = sum(len(split.columns) for split in splits.values())
    say(f"answer: {describe_answer_column(task.answer, profiles, rows_read)}")
    say(f"splits: {counts} rows, by {task.division.reason}")
    for name, split in splits.items():
        if split.sample:
            say(f"note: of {name} {split.sample} were looked at")
        if split.left_out:
            say(f"note: passed over: {split.left_out}")
    unusable = Counter[str]()
    for split in splits.values():
        unusable.update(split.errors)
    if unusable:
        say(f"note: rows that cannot be used: {describe_reasons(unusable)}; `uniaudio check` lists them")
    for note in (*task.layout.notes, *note_outer_folders(task, splits), *task.division.notes):
        say(f"note: {note}")
    say(f"wrote {', '.join(map(str, paths))}")
    config = shlex.quote(str(paths[-1]))
    say(f"next: uniaudio train {config}")
    say(f"or first: uniaudio preview {config} -n 3")
    say(f"          uniaudio check {config}")


def note_outer_folders(task: TaskDescription, splits: Mapping[str, SplitRows]) -> list[str]:
    """Return a sentence about the folders above those that labels are named after, where there are several."""
    if "audiofolder" not in task.load or task.answer.column != "label":
        return []
    names = (str(row.get("file_name", "")) for split in splits.values() for row in split.columns)
    outer = sorted({name.split("/")[0] for name in names if name.count("/") > 1})
    if len(outer) < 2:
        return []
    shown = ", ".join(outer[:SHOWN_LABELS])
    return [
        f"the label is the folder that a clip lies in; for those above it ({shown} ...) write `columns: {{outer: "
        "\"{{ file_name.split('/')[0] }}\"}` into the card, and `outer` into the template"
    ]


def describe_count(rows: int | None) -> str:
    return "?" if rows is None else f"{rows:,}"


def describe_reasons(reasons: Mapping[str, int]) -> str:
    """Return reasons with the rows of each, where they were counted."""
    return ", ".join(f"{reason} ({count:,})" if count else reason for reason, count in reasons.items())


def describe_answer_column(answer: Answer, profiles: Mapping[str, ColumnProfile], rows: int) -> str:
    """Return a sentence about the column that was chosen, and the others.

    Args:
        rows: that were read.
    """
    profile = profiles[answer.column]
    empty = rows - profile.filled
    kinds = {
        "label": f"a label with {len(answer.labels) or profile.different:,} values",
        "tags": f"several of {len(answer.labels) or profile.different:,} labels",
        "number": f"a number with {profile.different:,} values, learned as text",
        "transcript": "a transcript",
        "caption": "a description",
        "reply": f"the answer to the question in `{answer.question}`",
        "text": "a text",
    }
    counts = (
        profile.split_values(answer.separator)
        if answer.kind == "tags" and not answer.is_list
        else profile.values
    )
    common = [f"{value[:40]} {count:,}" for value, count in counts.most_common(SHOWN_LABELS)]
    if answer.kind not in ("label", "tags", "number"):
        common = [value[:60] for value, _ in counts.most_common(1)]
    more = " ..." if len(counts) > len(common) else ""
    others = [f"`{name}`" for name in profiles if name != answer.column][:SHOWN_COLUMNS]
    listed = f"; other columns: {', '.join(others)}" if others else ""
    lacking = f"; {empty:,} rows have none" if empty else ""
    return f"`{answer.column}` ({answer.reason}): {kinds[answer.kind]} ({', '.join(common)}{more}){lacking}{listed}"
