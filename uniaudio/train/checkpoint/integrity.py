"""Checksums of checkpoints: ``complete.json`` lists every file with its size and SHA-256, and is compared on load."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniaudio.errors import read_first_line

COMPLETE = "complete.json"  # lists the other files; written last
MODEL, EMA, OPTIMIZER = "model.safetensors", "ema.safetensors", "optimizer"
STATE, BASES, CONFIG = "state.json", "bases.json", "config.yaml"
REQUIRED = (MODEL, STATE, BASES, CONFIG)
PIECE = re.compile(rf"{OPTIMIZER}-(\d+)-of-(\d+)\.safetensors")  # the moments of one rank's share
# files; hashing leaves the interpreter's lock, and large checkpoints have a file for each rank
HASHED_AT_ONCE = 4


@dataclass(frozen=True)
class FileRecord:
    """What ``complete.json`` says of a file: its size in bytes and the SHA-256 of its content."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> FileRecord:
        """Read a file and describe it.

        Raises:
            OSError: when it cannot be read.
        """
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return cls(stream.tell(), digest)

    @classmethod
    def from_json(cls, data: Any) -> FileRecord:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: when it is of another form.
        """
        match data:
            case {"bytes": int(size), "sha256": str(digest)}:
                return cls(size, digest)
            case int():
                raise ValueError(
                    "it was written by a version without checksums; start a new run from its weights"
                )
        raise ValueError("it does not give each file's size and checksum")

    def to_json(self) -> dict[str, Any]:
        return {"bytes": self.size, "sha256": self.sha256}


def write_listing(folder: Path, records: Mapping[str, FileRecord]) -> None:
    """Write ``complete.json``."""
    listed = {name: record.to_json() for name, record in sorted(records.items())}
    (folder / COMPLETE).write_text(json.dumps(listed, indent=2))


def read_listing(folder: Path) -> dict[str, FileRecord]:
    """Read ``complete.json``.

    Raises:
        OSError: when it cannot be read.
        ValueError: when it is not JSON, of another form, or lists less than what a checkpoint consists of.
    """
    data = json.loads((folder / COMPLETE).read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    records = {name: FileRecord.from_json(entry) for name, entry in data.items()}
    if missing := [name for name in REQUIRED if name not in records]:
        raise ValueError(f"it does not list {missing[0]}")
    if odd := [name for name in records if Path(name).name != name]:
        raise ValueError(f"it lists {odd[0]!r}, which is not a plain file name")
    pieces = sorted(tuple(map(int, match.groups())) for name in records if (match := PIECE.fullmatch(name)))
    if not pieces or pieces != [(rank, len(pieces)) for rank in range(len(pieces))]:
        raise ValueError(f"it does not list the {OPTIMIZER} files of all processes")
    return records


def find_damage(folder: Path, names: Collection[str] | None = None, checksums: bool = True) -> str:
    """Return what is wrong with a checkpoint, or an empty text.

    Args:
        names: files whose content is compared; None for all of them. Sizes are always compared of all.
        checksums: compare contents, too; without, only the sizes.
    """
    try:
        records = read_listing(folder)
    except (OSError, ValueError, RecursionError) as problem:
        reason = "it is missing" if isinstance(problem, FileNotFoundError) else read_first_line(problem)
        return f"{COMPLETE} cannot be used: {reason}"
    for name, record in records.items():
        try:
            size = (folder / name).stat().st_size
        except OSError as problem:
            return f"{name} {describe_read_error(problem)}"
        if size != record.size:
            return f"{name} has {size} bytes instead of {record.size}"
    if not checksums:
        return ""
    compared = [name for name in records if names is None or name in names]
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        damages = pool.map(lambda name: compare_file(folder / name, records[name]), compared)
        return next((damage for damage in damages if damage), "")


def compare_file(path: Path, record: FileRecord) -> str:
    """Return what is wrong with a file, or an empty text."""
    try:
        same = FileRecord.of(path) == record
    except OSError as problem:
        return f"{path.name} {describe_read_error(problem)}"
    return "" if same else f"the content of {path.name} does not match its checksum"


def describe_read_error(problem: OSError) -> str:
    if isinstance(problem, FileNotFoundError):
        return "is missing"
    return f"cannot be read ({problem.strerror or read_first_line(problem)})"
