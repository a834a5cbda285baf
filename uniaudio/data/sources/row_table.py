"""Rows of large manifests in a file that all processes of a machine map into memory, instead of objects in each."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import marshal
import mmap
import os
import tempfile
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, overload

from uniaudio.config.path_variables import get_cache_root
from uniaudio.data.sources.base import hash_values
from uniaudio.errors import RowError

SHARED_BYTES = 8 << 20  # of a manifest: a smaller one is read by every process, within a tenth of a second
SHARED_ROWS = 50_000  # fewer stay objects: they take less than 40 MB
KEPT_SECONDS = 7 * 24 * 3600  # since a file was last opened, after which the next writer removes it
FOLDER = "rows"
WRITTEN_AT_ONCE = 1 << 20  # bytes
VERSION = 2  # of marshal: later ones write the same value in several ways, as it is referred to

NamedRow = tuple[str, Mapping[str, Any] | RowError]


class RowTable(Sequence[NamedRow]):
    """(key, columns or why there are none) of rows, each decoded when it is looked at.

    The file is named by its content, so processes with the same rows find and map the same one, and the kernel holds it
    once. What cannot be encoded (a column that is neither text, number, list nor mapping) stays an object.

    Args:
        path: of the file. size: number of rows. schemas: names of the columns, of which a row states the number.
        objects: rows that are not in the file, by index.
    """

    def __init__(
        self, path: Path, size: int, schemas: list[tuple[str, ...]], objects: dict[int, NamedRow]
    ) -> None:
        self.path, self.size, self.schemas, self.objects = path, size, schemas, objects
        self.map()

    def map(self) -> None:
        """Map the file: the encoded rows, behind them where each of them begins, and where the last one ends."""
        with self.path.open("rb") as stream:
            self.bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        begins = memoryview(self.bytes)[-8 * (self.size + 1) :]
        self.begins = begins.cast("Q")

    def __len__(self) -> int:
        return self.size

    @overload
    def __getitem__(self, index: int) -> NamedRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[NamedRow]: ...
    def __getitem__(self, index: int | slice) -> NamedRow | list[NamedRow]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(self.size))]
        index = range(self.size)[index]
        if index in self.objects:
            return self.objects[index]
        schema, key, *values = marshal.loads(self.bytes[self.begins[index] : self.begins[index + 1]])
        if schema < 0:
            problem = RowError("")
            problem.reason, problem.detail, problem.args = values[0], values[1], (values[2],)
            problem.key = values[3]
            return key, problem
        return key, dict(zip(self.schemas[schema], values, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "size", "schemas", "objects")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.map()


def share_rows(rows: Sequence[NamedRow], folder: Path | None = None) -> Sequence[NamedRow]:
    """Return rows as a table that other processes share, where there are many; else, and on a full disk, the same rows.

    Args:
        folder: of the files. Default: ``rows`` in the cache.
    """
    if len(rows) < SHARED_ROWS:
        return rows
    folder = folder or get_cache_root() / FOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_old_files(folder)
        return write_table(rows, folder)
    except OSError:  # no room, or no right to write: every process keeps its own rows
        return rows


def share_listing(
    file: Path, facts: Sequence[Any], build: Callable[[], list[NamedRow]], folder: Path | None = None
) -> Sequence[NamedRow]:
    """Return rows that are made of a file; of a large one, one process of a machine makes them and the others map them.

    Args:
        facts: plain values; what decides, beside the content of the file, what ``build`` returns.
        folder: see ``share_rows``.
    """
    if not file.is_file() or file.stat().st_size < SHARED_BYTES:
        return share_rows(build(), folder)
    folder = folder or get_cache_root() / FOLDER
    with file.open("rb") as stream:
        content = hashlib.file_digest(stream, "blake2b").hexdigest()
    # how a table is cut depends on its suffix, too
    index = folder / f"{hash_values([hash_code(), *facts, file.suffix.lower(), content])}.json"
    with take_turns(index):
        if (table := open_table(index)) is not None:
            return table
        rows = share_rows(build(), folder)
        if isinstance(rows, RowTable) and not rows.objects:
            keep_text(index, json.dumps({"file": rows.path.name, "size": rows.size, "schemas": rows.schemas}))
        return rows


def share_fingerprint(rows: Sequence[NamedRow], columns: Collection[str], compute: Callable[[], str]) -> str:
    """Return a fingerprint of rows; of the processes that map the same table one alone computes it.

    Args:
        columns: that it is about.
    """
    if not isinstance(rows, RowTable) or rows.objects:
        return compute()
    facts = [hash_code(), rows.path.stem, rows.schemas, sorted(columns)]
    file = rows.path.with_name(f"{hash_values(facts)}.fingerprint")
    with take_turns(file):
        with contextlib.suppress(OSError):
            os.utime(file)
            return file.read_text(encoding="utf-8")
        fingerprint = compute()
        keep_text(file, fingerprint)
        return fingerprint


@contextlib.contextmanager
def take_turns(file: Path) -> Iterator[None]:
    """Let one process at a time go on to make a file; where nothing can be locked, all of them."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(file.with_suffix(".lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)  # ends with its process, also with one that is killed
        yield


def keep_text(file: Path, text: str) -> None:
    """Write a file whole or, where it cannot be written, not at all."""
    with contextlib.suppress(OSError):
        new = file.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        new.rename(file)


def open_table(index: Path) -> RowTable | None:
    """Return the table that an index names; None where there is none, or it cannot be used."""
    try:
        known = json.loads(index.read_text(encoding="utf-8"))
        path = index.with_name(known["file"])
        for used in (index, path):
            os.utime(used)
        return RowTable(path, known["size"], [tuple(names) for names in known["schemas"]], {})
    except (OSError, ValueError, KeyError):
        return None


@cache
def hash_code() -> str:
    """Return a hash of the code that decides how rows are read."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def write_table(rows: Iterable[NamedRow], folder: Path) -> RowTable:
    """Write rows into a file of a folder, unless there is one with the same content.

    Raises:
        OSError: when the file cannot be written.
    """
    schemas: dict[tuple[str, ...], int] = {}
    objects: dict[int, NamedRow] = {}
    begins, digest, size = array("Q", [0]), hashlib.blake2b(digest_size=16), 0
    handle, name = tempfile.mkstemp(dir=folder, prefix=".unfinished-")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb", buffering=WRITTEN_AT_ONCE) as stream:
            for size, row in enumerate(rows, 1):
                encoded = encode_row(row, schemas)
                if encoded is None:
                    objects[size - 1] = row
                    encoded = b""
                digest.update(encoded)
                stream.write(encoded)
                begins.append(begins[-1] + len(encoded))
            padding = b"\0" * (-begins[-1] % 8)
            stream.write(padding + begins.tobytes())
            digest.update(begins.tobytes())
        path = folder / f"{digest.hexdigest()}.rows"
        if path.exists():
            os.utime(path)
        else:
            temporary.rename(path)
        return RowTable(path, size, list(schemas), objects)
    finally:
        temporary.unlink(missing_ok=True)


def encode_row(row: NamedRow, schemas: dict[tuple[str, ...], int]) -> bytes | None:
    """Return a row as bytes; None for one that cannot be encoded.

    Args:
        schemas: numbers of the names of columns; gets those of the row.
    """
    key, columns = row
    if isinstance(columns, RowError):
        return marshal.dumps((-1, key, columns.reason, columns.detail, str(columns), columns.key), VERSION)
    try:
        return marshal.dumps(
            (schemas.setdefault(tuple(columns), len(schemas)), key, *columns.values()), VERSION
        )
    except ValueError:
        return None


def remove_old_files(folder: Path) -> None:
    """Remove files that nobody has opened for long; those that are mapped stay readable."""
    until = time.time() - KEPT_SECONDS
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was faster, or it is another user's
            if file.stat().st_mtime < until:
                file.unlink()
