"""Files by URL: http(s) with the standard library, other schemes through fsspec; places written with braces."""

from __future__ import annotations

import http.client
import io
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from glob import glob
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

from uniaudio.data.source import BrokenShardError
from uniaudio.errors import UserError

BLOCK = 1 << 20  # bytes fetched at once where a file is read in jumps
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers that another try may change
RANGE = re.compile(r"\{([^{}]*)\}")


def is_remote(place: str) -> bool:
    return "://" in place


def expand_braces(text: str) -> list[str]:
    """Return the texts of ``a-{000..012}.tar`` or ``{dev,test}.tar``; digits keep their width.

    Raises:
        UserError: for braces that hold neither a range nor a list.
    """
    choices: list[list[str]] = []
    for inside in RANGE.findall(text):
        first, dots, last = inside.partition("..")
        if dots and first.isdigit() and last.isdigit() and int(first) <= int(last):
            choices.append([str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)])
        elif "," in inside:
            choices.append(inside.split(","))
        else:
            raise UserError(
                f"{text}: {{{inside}}} is neither a range such as {{000..012}} nor a list {{a,b}}"
            )
    parts = RANGE.split(text)[::2]
    return [
        "".join(x for pair in zip(parts, (*chosen, ""), strict=True) for x in pair)
        for chosen in product(*choices)
    ]


def expand_places(places: str | Sequence[str], suffix: str, where: str) -> list[str]:
    """Return files and URLs in a stable order: braces and globs expanded, folders searched for ``suffix``.

    Raises:
        UserError: for a local place that does not exist or holds no such file.
    """
    found: list[str] = []
    for text in [places] if isinstance(places, str) else places:
        for place in expand_braces(text):
            if is_remote(place):
                found.append(place)
                continue
            path = Path(place)
            files = (
                sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [Path(p) for p in sorted(glob(place))]
            )
            files = files or ([path] if path.is_file() else [])  # a name may hold the signs of a glob
            if not files:
                raise UserError(f"{where}: there is no {suffix.removeprefix('.')} file at {place}")
            found += map(str, files)
    return found


def ask(url: str, first: int, last: int | None, timeout: float) -> Any:
    """Send a GET for a part of a file.

    Raises:
        BrokenShardError: when the server refuses for good. OSError: when another try may help.
    """
    headers = {"Range": f"bytes={first}-{'' if last is None else last}", "User-Agent": "uniaudio"}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as problem:
        if problem.code == 416:  # nothing lies behind `first`: the end of the file
            return io.BytesIO()
        if problem.code in PASSING:
            raise
        raise BrokenShardError(f"{url}: {problem.code} {problem.reason}") from problem
    except http.client.HTTPException as problem:
        raise ConnectionError(f"{url}: {type(problem).__name__}") from problem


class HttpStream(io.RawIOBase):
    """A file at an http(s) URL, read onwards from an offset.

    A connection that ends early is an ``OSError``, never the end of the file.
    """

    def __init__(self, url: str, offset: int, timeout: float) -> None:
        self.url = url
        self.answer = ask(url, offset, None, timeout)
        length = getattr(self.answer, "headers", {}).get("Content-Length")
        self.left = int(length) if length is not None else None
        if (
            offset and getattr(self.answer, "status", 206) == 200
        ):  # the server sends the whole file all the same
            while offset:
                dropped = self.read(min(offset, BLOCK))
                if not dropped:
                    break
                offset -= len(dropped)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            count = self.answer.readinto(buffer)
        except http.client.HTTPException as problem:
            raise ConnectionError(f"{self.url}: {type(problem).__name__}") from problem
        if self.left is not None:
            self.left -= count
            if not count and len(buffer) and self.left > 0:
                raise ConnectionError(f"{self.url}: the connection ended {self.left} bytes early")
        return count

    def close(self) -> None:
        self.answer.close()
        super().close()


class HttpFile(io.RawIOBase):
    """A file at an http(s) URL, read in jumps.

    Raises:
        BrokenShardError: when the server does not serve parts of files.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout, self.place = url, timeout, 0
        answer = ask(url, 0, 0, timeout)
        total = getattr(answer, "headers", {}).get("Content-Range", "").rpartition("/")[2]
        if not total.isdigit():
            raise BrokenShardError(f"{url}: the server does not serve parts of files (HTTP range requests)")
        answer.close()
        self.size = int(total)

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.size}[whence]
        self.place = max(0, base + offset)
        return self.place

    def tell(self) -> int:
        return self.place

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), self.size - self.place)
        if wanted <= 0:
            return 0
        with ask(self.url, self.place, self.place + wanted - 1, self.timeout) as answer:
            try:
                data = answer.read()
            except http.client.HTTPException as problem:
                raise ConnectionError(f"{self.url}: {type(problem).__name__}") from problem
        if len(data) != wanted:
            raise ConnectionError(f"{self.url}: {len(data)} of {wanted} bytes came")
        buffer[:wanted] = data
        self.place += wanted
        return wanted


def open_onwards(place: str, offset: int, timeout: float) -> BinaryIO:
    """Open a local file or URL for reading onwards from an offset.

    Raises:
        BrokenShardError: when it is not there. OSError: when another try may help.
    """
    if place.startswith(("http://", "https://")):
        return io.BufferedReader(HttpStream(place, offset, timeout), BLOCK)
    stream = open_in_jumps(place, timeout)
    stream.seek(offset)
    return stream


def open_in_jumps(place: str, timeout: float) -> BinaryIO:
    """Open a local file or URL for reading in jumps.

    Raises:
        BrokenShardError, OSError: as above. UserError: for a scheme that nothing installed can read.
    """
    if place.startswith(("http://", "https://")):
        return io.BufferedReader(HttpFile(place, timeout), BLOCK)
    try:
        if not is_remote(place):
            return Path(place).open("rb")
        import fsspec  # only for its schemes

        return fsspec.open(place, "rb").open()
    except FileNotFoundError as problem:
        raise BrokenShardError(f"{place}: there is no such file") from problem
    except (ImportError, ValueError) as problem:
        raise UserError(f"{place}: cannot be read ({problem})") from problem
