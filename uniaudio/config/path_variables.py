"""Paths of YAML files: the variables that they may begin with, such as ``${realdata}`` and ``${env:NAME}``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from uniaudio.errors import UserError, hide_value

# what a path may begin with, ``${realdata}`` and so on: the environment variable with the folder, and what is in it
REAL_FOLDERS = {
    "realdata": ("UNIAUDIO_REALDATA", "real recordings"),
    "realaudio": ("UNIAUDIO_REALAUDIO", "labelled audio sets"),
    "realmodels": ("UNIAUDIO_REALMODELS", "pretrained models"),
}
CACHE_VARIABLE = "UNIAUDIO_CACHE"  # environment variable with the folder of what can be made again
VARIABLE = re.compile(r"\$\{env:(\w*)\}")
READS_ENVIRONMENT: ContextVar[bool] = ContextVar("reads_environment", default=True)
LEAVES_UNSET: ContextVar[bool] = ContextVar("leaves_unset", default=False)


def real_root(name: str) -> Path | None:
    """Return the folder that an environment variable names, by its name in ``REAL_FOLDERS``."""
    folder = os.environ.get(REAL_FOLDERS[name][0])
    return Path(folder).expanduser().absolute() if folder else None


def make_absolute(path: Path) -> Path:
    """Return an absolute path, without ``..`` where that leads to the same place: behind a link it may not."""
    whole = path.absolute()
    plain = Path(os.path.normpath(whole))
    return plain if plain.exists() and whole.exists() and plain.samefile(whole) else whole


def get_cache_root() -> Path:
    """Return where what can be made again is kept: ``$UNIAUDIO_CACHE``, else ``$XDG_CACHE_HOME/uniaudio``."""
    folder = os.environ.get(CACHE_VARIABLE)
    if folder:
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "uniaudio"


def get_miniature_root() -> Path:
    """Return the folder of the parts that miniature configs stand on; the number changes with their content."""
    return get_cache_root() / "miniature" / "parts-1"


@contextmanager
def allow_environment(allowed: bool) -> Iterator[None]:
    """Resolve ``${env:NAME}`` inside only if allowed: what a run of somebody else's names is not read for it."""
    token = READS_ENVIRONMENT.set(allowed)
    try:
        yield
    finally:
        READS_ENVIRONMENT.reset(token)


@contextmanager
def leave_unset_variables() -> Iterator[None]:
    """Leave paths inside as they are where their variable is not set: for what opens no data."""
    token = LEAVES_UNSET.set(True)
    try:
        yield
    finally:
        LEAVES_UNSET.reset(token)


def is_set(variable: str) -> bool:
    """Return whether a path that begins with a variable can be resolved here."""
    if variable in REAL_FOLDERS:
        return real_root(variable) is not None
    return get_miniature_root().is_dir() if variable == "miniature" else variable[4:] in os.environ


def expand_path(text: str, near: Path, where: str) -> str:
    """Resolve a path of a card or config: relative to its file, or behind one of ``${realdata}``, ``${realaudio}``,
    ``${realmodels}``, ``${miniature}`` and ``${env:NAME}``.

    A relative path that does not exist beside the file is left as it is: it may be a Hub name, or relative to
    the working directory. A path with braces or stars is one if its folder stands beside the file. URLs are left alone.

    Raises:
        UserError: when the folder or the environment variable is not there (see ``leave_unset_variables``), or is not
            to be read.
    """
    prefix = "random:" if text.startswith("random:") else ""
    text = text.removeprefix(prefix)
    if text.startswith("${"):
        variable, _, rest = text[2:].partition("}")
        if LEAVES_UNSET.get() and not is_set(variable):
            return f"{prefix}{text}"
        if variable in REAL_FOLDERS:
            root = real_root(variable)
            if root is None:
                name, content = REAL_FOLDERS[variable]
                raise UserError(f"{where}: no folder of {content}; set {name} to it")
            return f"{prefix}{root}{rest}"
        if variable == "miniature":
            if not get_miniature_root().is_dir():
                raise UserError(
                    f"{where}: the miniature models and data do not exist yet; give the full config and +mini"
                )
            return f"{prefix}{get_miniature_root()}{rest}"
        if not variable.startswith("env:"):
            raise UserError(
                f"{where}: ${{{variable}}} is none of "
                + ", ".join(f"${{{known}}}" for known in (*REAL_FOLDERS, "miniature", "env:NAME"))
            )
        name = variable.removeprefix("env:")
        if not READS_ENVIRONMENT.get():
            raise UserError(
                f"{where}: {text} names an environment variable, which is not read for a run that was not made on "
                "this machine; write the path itself into its config.yaml"
            )
        if name not in os.environ:
            raise UserError(f"{where}: set the environment variable {name}, which {text} uses")
        value = os.path.expanduser(os.environ[name])
        hide_value(value, f"${{{variable}}}")
        return f"{prefix}{value}{rest}"
    if "://" in text:
        return f"{prefix}{text}"
    plain = re.split(r"[*?\[{]", text)[0]  # up to the first sign of a pattern
    if (
        not text.startswith("/")
        and (near / (text if plain == text else os.path.dirname(plain) or ".")).exists()
    ):
        return f"{prefix}{make_absolute(near / text)}"
    return f"{prefix}{os.path.expanduser(text)}"
