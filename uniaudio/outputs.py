"""Where commands write: tried before anything slow starts; and the permissions of what they write."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uniaudio.errors import UserError, convert_to_user_error

TRIAL = 4096  # bytes that must find room
TRIES = 5  # where another process removes a folder meanwhile


def check_output_folder(folder: Path, where: str) -> Path:
    """Try whether files can be written to a folder, which may not exist yet; what is made for it is removed again.

    Args:
        where: the setting or option that names the folder ("output_dir", "--out").

    Returns:
        The folder with ``~`` expanded.

    Raises:
        UserError: for a folder that cannot be made or written: a file in its place, no permission, a disk that is
            read-only or full, a name that is too long.
    """
    with convert_to_user_error(
        f"{where}: {shorten(folder)} cannot be written", f"give {where} another folder"
    ):
        folder = folder.expanduser()
        try_to_write(name_temporary(folder))
    return folder


def check_output_file(file: Path, where: str) -> Path:
    """Try whether a file can be written; it is not made, and one that exists stays as it is.

    Args:
        where: as for ``check_output_folder``.

    Returns:
        The path with ``~`` expanded.

    Raises:
        UserError: as ``check_output_folder``, and for a folder in the file's place.
    """
    with convert_to_user_error(f"{where}: {shorten(file)} cannot be written", f"give {where} another file"):
        file = file.expanduser()
        if file.is_dir():
            raise UserError(f"{where}: {shorten(file)} is a folder; name a file")
        if file.exists():
            file.open("ab").close()
        try_to_write(name_temporary(file.parent) if file.exists() else file)
    return file


def require_new_folder(folder: Path, where: str) -> None:
    """Refuse a place where something is.

    Args:
        where: as for ``check_output_folder``.

    Raises:
        UserError: when the folder is not empty or is a file.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; give {where} a new folder")


def write_json(path: Path, data: Any) -> None:
    """Write plain values as a JSON file, as ``replace_text``."""
    replace_text(path, json.dumps(data, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file in a folder that need not exist yet: what was there stays until all of the text is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # a device or a pipe
        path.write_text(text, encoding="utf-8")
        return
    path = path.resolve()  # a link goes on to name the file
    temporary = name_temporary(path.parent)
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def name_temporary(folder: Path) -> Path:
    """Return the name of a file in a folder that is not there yet."""
    return folder / f".uniaudio-{uuid.uuid4().hex}"


def check_file_option(path: Path | None) -> Path | None:
    """Check the file that an option of a command names; of several ranks the main one does it for all."""
    if path is None:
        return None
    return check_output_file(path, "output") if is_main_rank() else path.expanduser()


def check_folder_option(path: Path | None) -> Path | None:
    """Check the folder that an option of a command names, as ``check_file_option``."""
    if path is None:
        return None
    return check_output_folder(path, "output") if is_main_rank() else path.expanduser()


def is_main_rank() -> bool:
    """Return whether a launcher made this the main rank, before any exchange between ranks begins."""
    return os.environ.get("RANK", "0") == "0"


def try_to_write(file: Path) -> None:
    """Write a new file and remove it, with the folders that were made for it."""
    for left in reversed(range(TRIES)):
        try:
            with create_temporarily(file.parent):
                write_trial(file)
            return
        except FileNotFoundError:  # another process tried the same, and removed the folder that it had made
            if not left:
                raise


@contextmanager
def create_temporarily(folder: Path) -> Iterator[None]:
    """Make a folder and those above it, and remove the ones that were not there, where nothing came into them."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for path in missing:
            with contextlib.suppress(OSError):  # not made, or somebody else's files are in it
                path.rmdir()


@contextmanager
def remove_on_failure(folder: Path) -> Iterator[None]:
    """Remove what came into a folder where the block fails, and a new folder itself: the command can be given again."""
    before = set(folder.iterdir()) if folder.is_dir() else None
    try:
        yield
    except BaseException:
        for path in set(folder.iterdir() if folder.is_dir() else ()) - (before or set()):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        if before is None:
            with contextlib.suppress(OSError):  # not made
                folder.rmdir()
        raise


def write_trial(file: Path) -> None:
    """Write a few bytes to a new file on the disk and remove it."""
    with file.open("xb") as stream:
        try:
            stream.write(bytes(TRIAL))
            stream.flush()
            os.fsync(stream.fileno())
        finally:
            file.unlink(missing_ok=True)


def shorten(path: Path) -> str:
    """Return a path for a sentence: a name that is too long for the disk is too long for a sentence."""
    text = str(path)
    return text if len(text) <= 200 else f"{text[:100]}...{text[-60:]}"


def apply_umask(path: Path) -> None:
    """Give a file, or a folder and all in it, the permissions that the user's umask gives to new ones.

    Some libraries write through temporary files, which nobody but their user can read.
    """
    mask = read_umask()
    for each in (path, *path.rglob("*")) if path.is_dir() else (path,):
        if not each.is_symlink():
            with contextlib.suppress(OSError):  # disks without permissions
                each.chmod((0o777 if each.is_dir() else 0o666) & ~mask)


def read_umask() -> int:
    """Return the permission bits that new files lack."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0)  # the system tells it in no other way
    os.umask(mask)
    return mask
