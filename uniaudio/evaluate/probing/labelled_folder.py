"""Labelled folders as tasks of a suite: a manifest (``.jsonl``, ``.csv`` or ``.tsv``) with audio, label and split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from uniaudio.data.card import DatasetCard, Split
from uniaudio.data.card_file import Load
from uniaudio.data.segment import MANIFEST_SEGMENTS, SegmentColumns
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.lost_classes import UnmeasurableTaskError, describe_lost_classes
from uniaudio.evaluate.probing.placeholder_classes import (
    count_placeholders,
    describe_placeholder_classes,
)
from uniaudio.evaluate.probing.skipped_row_notes import describe_rows
from uniaudio.evaluate.probing.suite import Suite, TaskFile
from uniaudio.evaluate.probing.task_embeddings import hold_clips
from uniaudio.evaluate.probing.task_rows import TaskRows, read_task

T = TypeVar("T")

MANIFESTS = ("manifest.jsonl", "manifest.csv", "manifest.tsv")  # the first that is there is read


def build_folder_suite(
    folders: Mapping[str, Path], option: str = "--data", takes_suite: bool = False
) -> Suite:
    """Return a suite with one task for each labelled folder, by its name; each counts as much in averages.

    Args:
        option: where the folders were named, for messages. takes_suite: the command has `--suite`, too.

    Raises:
        UserError: when a folder is not there or holds no manifest.
    """
    tasks = {}
    for name, folder in folders.items():
        keys = {"dataset": name, "domain": None, "split_column": "split", "weight": 1.0}
        tasks[name] = (TaskFile.model_validate(keys), build_folder_card(name, folder, option, takes_suite))
    return Suite(None, tasks)


def hold_folders(
    folders: Mapping[str, Path], note: Callable[[str], None], option: str = "--data"
) -> list[TaskRows]:
    """Read labelled folders with all of their clips, to be probed several times.

    Args:
        note: is given a sentence about folders, rows and classes that were left out and clips that are odd.
        option: see ``build_folder_suite``.

    Raises:
        UserError: when a folder is not there, holds no manifest, or no row of it that can be used.
        UnmeasurableTaskError: when no folder has rows and classes enough.
    """

    def hold_folder(name: str, task: TaskFile, card: DatasetCard) -> TaskRows:
        rows, notices = hold_clips(read_task(name, task, card))
        for sentence in (
            *describe_rows(name, rows.skipped, notices),
            *describe_lost_classes(name, rows.lost, is_fold=False, kind=task.kind),
            *describe_placeholder_classes(name, count_placeholders(rows), is_folder=True),
        ):
            note(sentence)
        return rows

    return list(read_folders(folders, hold_folder, note, option).values())


def read_folders(
    folders: Mapping[str, Path],
    read: Callable[[str, TaskFile, DatasetCard], T],
    note: Callable[[str], None],
    option: str = "--data",
) -> dict[str, T]:
    """Return what ``read`` makes of each labelled folder, see ``keep_measurable``.

    Raises:
        UserError: see ``hold_folders``.
    """
    tasks = build_folder_suite(folders, option).tasks
    return keep_measurable(tasks, lambda name: read(name, *tasks[name]), note)


def keep_measurable(
    names: Iterable[str], make: Callable[[str], T], note: Callable[[str], None]
) -> dict[str, T]:
    """Return what is made of tasks by their names, without those of which too few rows or classes can be used.

    Args:
        note: is given a sentence about each task that is left out.

    Raises:
        UnmeasurableTaskError: when none is left, with the reason of each.
    """
    made: dict[str, T] = {}
    problems: dict[str, UnmeasurableTaskError] = {}
    for name in names:
        try:
            made[name] = make(name)
        except UnmeasurableTaskError as problem:
            problems[name] = problem
    if problems and not made:
        raise UnmeasurableTaskError("; ".join(map(str, problems.values())))
    for name, refusal in problems.items():
        note(f"{name} is left out: {refusal.reason}")
    return made


def build_folder_card(name: str, folder: Path, option: str, takes_suite: bool) -> DatasetCard:
    """Return a card for the rows of a folder's manifest, so that they are read as those of training are.

    Args:
        option, takes_suite: see ``build_folder_suite``.

    Raises:
        UserError: when there is no folder, or no manifest in it.
    """
    where = f"{option} {name}={folder}"
    if not folder.is_dir():
        raise UserError(f"{where}: there is no such folder")
    manifest = next((folder / file for file in MANIFESTS if (folder / file).is_file()), None)
    if manifest is None:
        advice = (
            f"to probe data through their card, write a suite with `tasks: {{{name}: {{dataset: CARD, "
            "domain: null}}` and give it as --suite FILE"
            if takes_suite
            else "write one"
        )
        raise UserError(
            f"{where}: there is no {folder / MANIFESTS[0]} (nor {', '.join(MANIFESTS[1:])}) with the columns audio, "
            f"label and split; {advice}"
        )
    kind = "jsonl" if manifest.suffix == ".jsonl" else "csv"
    load = Load.model_validate({kind: str(manifest)})
    return DatasetCard(
        name,
        load,
        "",
        None,
        ("audio",),
        {},
        {"train": Split("train", None)},
        manifest,
        segment=SegmentColumns(None, MANIFEST_SEGMENTS, is_strict=True),
    )
