"""``uniaudio new``: from data to the four files of a task, with what was seen of the data."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from uniaudio.build.run_config import open_run
from uniaudio.checks.first_rows import check_entry
from uniaudio.config.search_paths import find_shipped_root
from uniaudio.console import make_console
from uniaudio.data.card_file import MANIFESTS
from uniaudio.data.keep_conditions import KEY
from uniaudio.data.recipe import load_recipe
from uniaudio.data.scaffold.answer_column import Answer, choose_answer
from uniaudio.data.scaffold.column_profiles import ColumnProfile, profile_columns
from uniaudio.data.scaffold.layouts import Layout, find_layout
from uniaudio.data.scaffold.row_inspection import (
    SplitRows,
    close_labels,
    count_split_rows,
    read_split,
    refuse_empty,
    share_of_unusable,
)
from uniaudio.data.scaffold.task_files import (
    TaskDescription,
    render_dataset_card,
    render_recipe,
    render_template,
)
from uniaudio.data.scaffold.task_summary import show_task
from uniaudio.data.scaffold.train_test_split import Division, divide_rows
from uniaudio.errors import UserError
from uniaudio.estimate.starting_config import (
    LONGEST,
    SHORT,
    HostMachine,
    choose_models,
    choose_sizes,
    render_config,
)

NAME = re.compile(r"\w[\w.-]{0,99}")
FILES = (
    "templates",
    "data_recipes/datasets",
    "data_recipes",
    "configs",
)  # folders of the files, in their order


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
    """Look at data, write template, card, recipe and run config, print what was seen, and return the config's path.

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
    for column in (KEY, layout.audio):  # no part of what rows say
        profiles.pop(column, None)
    where = f"--data {wanted.data}"
    refuse_empty(profiles, splits, where)
    answer = choose_answer(profiles, wanted.label, wanted.text, where)
    answer = close_labels(answer, splits)
    division = divide(layout, splits, profiles, answer)
    task = describe_task(wanted, layout, splits, profiles, answer, division, paths)
    lengths = [length for split in splits.values() for length in split.lengths]
    sizes = choose_sizes(
        machine,
        lengths,
        count_training_rows(task),
        share_of_unusable(splits, answer),
        task.windows is not None,
    )
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
        raise UserError(f"NAME '{wanted.name[:40]}': use up to 100 letters, digits, _ and -, such as {near}")
    if any((find_shipped_root() / folder / f"{wanted.name}.yaml").is_file() for folder in FILES):
        raise UserError(f"NAME '{wanted.name}': uniaudio includes files of this name; use my_{wanted.name}")
    paths = [wanted.out / folder / f"{wanted.name}.yaml" for folder in FILES]
    there = [str(path) for path in paths if path.exists()]
    if there and not wanted.force:
        raise UserError(f"{', '.join(there)} would be overwritten; use another NAME, or --force to replace")
    return paths


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
    # names in folders of splits, tables and archives may begin anew in every split
    kinds = MANIFESTS if len(rows) > 1 else (*MANIFESTS, "audiofolder")
    is_file = clip in candidates[:2] and not layout.load.keys().isdisjoint(kinds)
    return divide_rows(rows, profiles, labels, clip, is_file)


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


def count_training_rows(task: TaskDescription) -> int | None:
    """Return the rows that are trained on; None where they are not known."""
    rows = [(task.rows or {}).get(name) for name in task.division.train]
    return None if None in rows else sum(filter(None, rows))


def write_task_files(paths: Sequence[Path], texts: Sequence[str]) -> None:
    """Write the files and read them as any command would; where one has a mistake, none is left behind.

    Raises:
        UserError: as ``load_recipe`` and ``open_run``.
    """
    before = {path: path.read_bytes() if path.exists() else None for path in paths}
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
                path.write_bytes(old)
        raise
