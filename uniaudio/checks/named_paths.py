"""Paths and names on the command line, looked up before the slow imports: nothing here imports torch.

What exists is not opened. Whoever reads it says what is wrong with it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from uniaudio.config.missing_folders import describe_missing_folder, refuse_missing_folder
from uniaudio.config.model_spec import BEHIND_PATH, parse_model_spec
from uniaudio.config.run import RunConfig
from uniaudio.config.search_paths import find_file, find_recipe_or_config
from uniaudio.data.encoded_audio import require_file
from uniaudio.errors import RowError, UserError, prefix_user_errors
from uniaudio.outputs import is_main_rank
from uniaudio.train.checkpoint.folders import has_checkpoints, refuse_begun_run

RUN_FILES = ("checkpoints", "metrics.jsonl", "config.yaml")  # a folder with any of them is that of a run


def strip_marks(path: str) -> str:
    """Return the path of a model without ``random:`` before it and ``:ema`` behind it."""
    prefix, suffix = BEHIND_PATH
    return path.removeprefix(prefix).removesuffix(suffix)


def refuse_missing_encoder(spec: str) -> None:
    """Refuse a MODEL whose path is neither a folder nor can be a name of the Hub.

    Raises:
        UserError: naming the path, and a near one; for options that are unknown or out of bounds.
    """
    refuse_missing_path(parse_model_spec(spec).path)


def refuse_missing_path(path: str) -> None:
    """Refuse the path of an encoder or decoder that is neither a folder nor can be a name of the Hub.

    Raises:
        UserError: naming it, and a near one.
    """
    path = strip_marks(path)
    if os.path.exists(path) or ":" in path:  # a class of the user's own is named module:Class
        return
    refuse_missing_folder(path)
    owner, slash, _ = path.partition("/")
    if slash and is_folder_of_runs(owner):
        raise UserError(describe_missing_folder(path))


def is_folder_of_runs(folder: str) -> bool:
    """Return whether a folder holds run folders, so that what is named in it is a run and nothing of the Hub."""
    inside = (entry.path for entry in os.scandir(folder) if entry.is_dir()) if os.path.isdir(folder) else ()
    return any(os.path.exists(os.path.join(path, name)) for path in inside for name in RUN_FILES)


def refuse_missing_model(spec: str) -> None:
    """Refuse a whole model that is neither a folder nor can be a name of the Hub, which here has an owner.

    Raises:
        UserError: naming the path, and a near one.
    """
    path = strip_marks(parse_model_spec(spec).path)
    if os.path.exists(path):
        return
    refuse_missing_folder(path)
    owner, slash, _ = path.partition("/")
    if not slash or os.path.exists(owner):
        raise UserError(describe_missing_folder(path))


def refuse_missing_run(spec: str | Path) -> None:
    """Refuse a run or checkpoint folder that is not there.

    Raises:
        UserError: naming the path, and a near one.
    """
    path = strip_marks(parse_model_spec(str(spec)).path)
    if not os.path.exists(path):
        raise UserError(describe_missing_folder(path))


def refuse_missing_recipe(name: str) -> None:
    """Refuse a recipe or run config, by path or name, or run folder that is not there.

    Raises:
        UserError: with the nearest valid name.
    """
    if not os.path.exists(name):
        find_recipe_or_config(name)


def refuse_missing_data_place(place: str) -> None:
    """Refuse the data of a new task that are neither here nor can be a name of the Hub.

    Raises:
        UserError: naming the option.
    """
    is_path = place.startswith((".", "/", "~")) or place.count("/") > 1
    if (is_path or "/" not in place) and not Path(place).expanduser().exists():
        advice = "" if is_path else ", and Hub names are written OWNER/NAME"
        raise UserError(f"--data {place}: there is no such file or folder{advice}")


def refuse_missing_source(source: Path) -> None:
    """Refuse to import what is not there.

    Raises:
        UserError: naming it.
    """
    if not source.expanduser().exists():
        raise UserError(f"{source}: there is no such file or folder")


def refuse_missing_clips(clips: Sequence[Path]) -> None:
    """Refuse clips none of which is a file; where some are, the others are skipped.

    Raises:
        UserError: naming the first.
    """
    problems = []
    for clip in clips:
        try:
            require_file(clip.expanduser())
            return
        except RowError as problem:
            problems.append(problem)
    if len(problems) == 1:
        raise UserError(str(problems[0]))
    if problems:
        raise UserError(f"none of {len(problems)} file(s) can be used; the first: {problems[0]}")


def refuse_missing_results(option: str, files: Iterable[Path]) -> None:
    """Refuse results files that are not there.

    Raises:
        UserError: naming the option and the file.
    """
    for file in files:
        if not os.path.isfile(file):
            raise UserError(f"{option}: there is no file {file}")


def parse_folders(items: Iterable[str]) -> dict[str, Path]:
    """Read options of the form ``NAME=FOLDER``; few shells replace a ``~`` behind the sign.

    Raises:
        UserError: when one has another form, or a name is given twice.
    """
    folders: dict[str, Path] = {}
    for item in items:
        name, _, folder = item.partition("=")
        if not (name and folder):
            raise UserError(f"--data {item}: write NAME=FOLDER")
        if name in folders:
            raise UserError(f"--data {item}: the name '{name}' is given twice")
        folders[name] = Path(folder).expanduser()
    return folders


def refuse_missing_data(items: Iterable[str]) -> None:
    """Refuse ``--data NAME=FOLDER`` where there is no such folder.

    Raises:
        UserError: naming the option; as ``parse_folders``.
    """
    for name, folder in parse_folders(items).items():
        if not os.path.isdir(folder):
            raise UserError(f"--data {name}={folder}: there is no such folder")


def refuse_missing_parts(config: RunConfig) -> None:
    """Refuse a run config that names recipes, folders of models or guarded sets that are not there.

    Raises:
        UserError: naming the key.
    """
    for name, encoder in config.encoders.items():
        if ":" not in encoder.kind:
            with prefix_user_errors(f"encoders.{name}.path"):
                refuse_missing_path(encoder.path)
    if config.decoder.miniature is None:
        with prefix_user_errors("decoder.path"):
            refuse_missing_path(config.decoder.path)
    for stage in config.stages:
        find_file("recipe", stage.recipe, config.folder)
        if stage.continual.ewc is not None and stage.continual.ewc.recipe is not None:
            find_file("recipe", stage.continual.ewc.recipe, config.folder)
    for name, folder in config.guard.sets.items() if config.guard is not None else ():
        if not os.path.isdir(folder):
            raise UserError(f"guard.sets {name}={folder}: there is no such folder")


def refuse_unfit_run_folder(config: RunConfig, resume: str | None) -> None:
    """Refuse to begin a run on top of another one, and to continue one that is not there.

    Raises:
        UserError: naming the folder.
    """
    folder = Path(config.output_dir)
    refuse_begun_run(folder, resume)
    # other machines may not share the folder, which is said when all of them have started
    if resume == "yes" and is_main_rank() and not has_checkpoints(folder):
        raise UserError(f"--resume: {folder} holds no complete checkpoint; leave --resume out to start")
