"""Where named files are found: templates, dataset cards, recipes, run configs and probe suites."""

from __future__ import annotations

from contextlib import suppress
from os.path import expanduser, isfile
from pathlib import Path
from typing import Literal

from uniaudio.config.nearest import suggest_or_list
from uniaudio.config.strict_yaml import parse
from uniaudio.config.text_files import read_text_file
from uniaudio.errors import UserError

Kind = Literal["template", "dataset", "recipe", "config", "suite"]

FOLDERS: dict[Kind, str] = {
    "template": "templates",
    "dataset": "data_recipes/datasets",
    "recipe": "data_recipes",
    "config": "configs",
    "suite": "suites",
}
FIRST_KEY: dict[Kind, str] = {
    "template": "task",
    "dataset": "dataset",
    "recipe": "recipe",
    "config": "",
    "suite": "suite",
}
PACKAGE = Path(__file__).resolve().parent.parent


def find_shipped_root() -> Path:
    """Return the folder of the shipped YAML files: the one in the wheel, or the checkout itself."""
    inside = PACKAGE / "_shipped"
    return inside if inside.is_dir() else PACKAGE.parent


def list_search_folders(kind: Kind, near: Path | None) -> list[Path]:
    """Return the folders in order of precedence: around the naming file, the user's own, the shipped ones."""
    around = [near, near / FOLDERS[kind], near.parent / FOLDERS[kind]] if near is not None else []
    return [*around, Path(FOLDERS[kind]), find_shipped_root() / FOLDERS[kind]]


def is_of_kind(file: Path, kind: Kind) -> bool:
    """Return whether a file holds the key of its kind: files of several kinds may share a folder."""
    key = FIRST_KEY[kind]
    if not key:
        return True
    try:
        text = read_text_file(file)
    except UserError:
        return True  # what is wrong with it is said when it is read
    if any(line.startswith(f"{key}:") for line in text.split("\n")):
        return True
    with suppress(UserError):  # keys in quotes or braces, as in JSON; parsing takes much longer
        content = parse(text, str(file))
        return isinstance(content, dict) and key in content
    return False


def is_of_no_other_kind(file: Path, near: Path | None) -> bool:
    """Return whether a file without the key of the kind that is looked for can be meant all the same.

    A file that is empty or no mapping is of no kind, nor is one in the folder of its kind whose first key is
    misspelled: what is wrong with it is said when it is read. The folder of the naming file holds files of all kinds.
    """
    try:
        content = parse(read_text_file(file), str(file))
    except UserError:
        return True
    if not isinstance(content, dict):
        return True
    return (near is None or file.parent != near) and not any(key in content for key in FIRST_KEY.values())


def find_file(kind: Kind, name_or_path: str, near: Path | None = None) -> Path:
    """Return the YAML file of a name (``esc50``) or path (``my/esc50.yaml``).

    Args:
        near: the folder of the file that names it; searched first.

    Raises:
        UserError: with the nearest valid name.
    """
    name_or_path = expanduser(name_or_path)
    if name_or_path.endswith((".yaml", ".yml")):
        for path in (*([near / name_or_path] if near else []), Path(name_or_path)):
            if isfile(path):  # that of `Path` raises where a text is too long for a name
                return path
        if "/" in name_or_path:
            raise UserError(f"there is no {kind} file {name_or_path}")
    if kind == "config" and isfile(stored := Path(name_or_path) / "config.yaml"):
        raise UserError(f"{name_or_path} is a run folder; its config is {stored}")
    stem = name_or_path.removesuffix(".yaml").removesuffix(".yml")
    folders = list_search_folders(kind, near)
    named = [file for folder in folders if isfile(file := folder / f"{stem}.yaml")]
    for file in named:
        if is_of_kind(file, kind):
            return file
    for file in named:
        if is_of_no_other_kind(file, near):
            return file
    files = {file for folder in folders for file in folder.glob("*.yaml")}
    known = sorted({file.stem for file in files if is_of_kind(file, kind)})
    raise UserError(f"there is no {kind} '{stem}'{suggest_or_list(stem, known)}")


def find_recipe_or_config(name_or_path: str) -> Path:
    """Return the YAML file of a recipe, or of a run config where no recipe has the name.

    Raises:
        UserError: with the nearest valid name of a recipe.
    """
    try:
        return find_file("recipe", name_or_path)
    except UserError as problem:
        try:
            return find_file("config", name_or_path)
        except UserError:
            raise problem from None


def make_portable_name(kind: Kind, name_or_path: str, near: Path) -> str:
    """Return a text that finds the same file from any folder: a shipped file's name, any other's full path.

    A name that is not found is left as it is; whoever opens it says what is near.
    """
    try:
        file = find_file(kind, name_or_path, near).resolve()
    except UserError:
        return name_or_path
    shipped = (find_shipped_root() / FOLDERS[kind]).resolve()
    is_name = "/" not in name_or_path and not name_or_path.endswith((".yaml", ".yml"))
    return name_or_path if is_name and file.parent == shipped else str(file)


def require_name_of_file(path: Path, key: str, name: str) -> None:
    """Refuse a file that is found by another name than the one it states.

    Args:
        key: of the name. name: that the file states.

    Raises:
        UserError: when it is not the name of the file.
    """
    if name != path.stem:
        raise UserError(f"{path}: {key} is '{name}', but the file is {path.name}; make them equal")
