"""Files below a folder: which suffixes are clips, links are followed, and what is skipped is counted."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from os.path import splitext
from pathlib import Path

import soundfile

from uniaudio.data.containers.libsndfile_log import HEADERLESS

UNDESCRIBED = {"RAW"}  # cannot be read without its rate being stated
# other suffixes in use for the formats that the library names
ALSO = {
    ".aif", ".aifc", ".8svx", ".bwf", ".iff", ".mp2", ".mpga", ".oga", ".opus", ".sf", ".snd", ".sph", ".wave",
}  # fmt: skip

SUFFIXES = (
    {f".{name.lower()}" for name in soundfile.available_formats() if name not in UNDESCRIBED}
    | ALSO
    | set(HEADERLESS)
)
# clips too: that they cannot be decoded is reported, where skipping the files would hide it
UNREADABLE = {".aac", ".amr", ".m4a", ".m4b", ".mka", ".weba", ".wma"}
CLIP_SUFFIXES = SUFFIXES | UNREADABLE
HIDDEN = (".", "__MACOSX")  # how names begin that systems and tools add


def walk_files(folder: Path, left_out: Counter[str] | None = None) -> Iterator[Path]:
    """Yield the files below a folder in no particular order; those that links lead to come under the link's name.

    A folder that was read under another name (a link to a folder above it, or a second link to the same one) is not
    read again: links could lead in circles, and rows would come twice.

    Args:
        left_out: is counted what is skipped, by reason.
    """
    left_out = Counter() if left_out is None else left_out
    seen: set[tuple[int, int]] = set()
    folders, links = [folder], list[Path]()
    while folders or links:
        # links come last, so that a folder is read under its own name wherever it lies below
        current = folders.pop() if folders else links.pop()
        try:
            status = os.stat(current)
            entries = sorted(os.scandir(current), key=lambda entry: entry.name, reverse=True)
        except OSError:
            left_out["folder that cannot be opened"] += 1
            continue
        if (status.st_dev, status.st_ino) in seen:
            left_out["link to a folder that is already read"] += 1
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith(HIDDEN):
                left_out["hidden file or folder"] += 1
            elif not is_folder(entry):
                yield Path(entry.path)
            else:
                (links if entry.is_symlink() else folders).append(Path(entry.path))


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or leads to one; a link that leads nowhere is a file that is missing."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def is_clip(name: str) -> bool:
    """Return whether a file is a clip by its name or path."""
    # three times faster than a Path, and asked of every member of an archive
    return splitext(name)[1].lower() in CLIP_SUFFIXES


def describe_left_out(left_out: Mapping[str, int]) -> str:
    """Return what lies in a place and is not taken, by reason and number; empty where there is nothing."""
    return ", ".join(f"{reason} ({count:,})" for reason, count in sorted(left_out.items()) if count)


def describe_suffix(file: Path) -> str:
    """Return the reason for which a file is skipped that is no clip by its name."""
    return f"file with suffix {file.suffix.lower()}" if file.suffix else "file without suffix"
