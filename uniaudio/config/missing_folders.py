"""Folders of models that are not there. Models import this, too, so it needs no package beside Python's own."""

from __future__ import annotations

import os
from pathlib import Path

from uniaudio.config.nearest import suggest_name
from uniaudio.errors import UserError


def refuse_missing_folder(name: str) -> None:
    """Refuse what is written as a folder and is none, for it cannot be a name of the Hub.

    Raises:
        UserError: naming it.
    """
    if os.path.isfile(name):
        raise UserError(f"{name} is a file; give the folder of a model")
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(describe_missing_folder(name))


def describe_missing_folder(name: str) -> str:
    """Return the sentence that there is no such folder, with the nearest name beside it."""
    path = Path(name)
    beside = sorted(os.listdir(path.parent)) if os.path.isdir(path.parent) else []
    return f"there is no folder {name}{suggest_name(path.name, beside)}"
