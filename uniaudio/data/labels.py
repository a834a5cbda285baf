"""Closed sets of answers: the labels of a column, as a card or recipe states them, and as answers of a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from uniaudio.config.text_files import compose, read_text_file
from uniaudio.errors import UserError

# One label of a column as templates see it; numbers stay numbers, so that a template can compute with them.
Label = str | int | float


def check_labels_are_text(labels: Any) -> Any:
    """Refuse labels that YAML has read as something else than text or a number."""
    if not isinstance(labels, list | tuple):
        return labels
    for label in labels:
        if label is None or isinstance(label, bool):
            raise ValueError(f"a label is {label}, which is not text; put it in quotes")
    return tuple(labels)


LabelList = Annotated[tuple[Label, ...], BeforeValidator(check_labels_are_text)]
LabelSet = Annotated[tuple[Label, ...] | str, BeforeValidator(check_labels_are_text)]


def read_label_set(stated: tuple[Label, ...] | str, folder: Path, where: str) -> tuple[Label, ...]:
    """Return the labels of a list, or of a text file with one label a line (blank lines are left out).

    Args:
        folder: that the path of the file is relative to. where: file and key, named in errors.

    Raises:
        UserError: when there is no such file, it is no text, or the set is empty or names a label twice.
    """
    labels: tuple[Label, ...]
    if isinstance(stated, str):
        file = folder / Path(stated).expanduser()
        if not file.is_file():
            raise UserError(
                f"{where}: there is no file {file}; write a list, or a text file with a label a line"
            )
        labels = tuple(line.strip() for line in compose(read_text_file(file)).split("\n") if line.strip())
        where = f"{where}: {file}"
    else:
        labels = tuple(compose(label.strip()) if isinstance(label, str) else label for label in stated)
    check_label_names([str(label) for label in labels], where)
    return labels


def check_label_names(names: Sequence[str], where: str) -> None:
    """Refuse a set that is empty, has an empty label, or the same label twice.

    Raises:
        UserError: naming the label.
    """
    if not names:
        raise UserError(f"{where}: is empty; name at least one label")
    seen: set[str] = set()
    for name in names:
        if not name:
            raise UserError(f"{where}: a label is empty; give it a name or leave it out")
        if name in seen:
            raise UserError(f"{where}: {name} is written twice; keep one of them")
        seen.add(name)


def read_label_sets(
    stated: Mapping[str, tuple[Label, ...] | str], folder: Path, where: str
) -> dict[str, tuple[Label, ...]]:
    """Return the label sets of several columns, see ``read_label_set``."""
    return {column: read_label_set(labels, folder, f"{where}.{column}") for column, labels in stated.items()}
