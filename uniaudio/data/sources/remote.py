"""Files by URL: http(s) with the standard library, other schemes through fsspec; which errors may pass."""

from __future__ import annotations

import http.client
import io
import math
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from uniaudio.data.source import BrokenShardError
from uniaudio.data.sources.places import HTTP, is_remote

BLOCK = 1 << 20  # bytes fetched at once where a file is read in jumps
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP answers that another try may change
# whose errors are those of a connection, where they are no OSErrors; imported by fsspec's file systems alone
NETWORK = {"aiohttp", "botocore", "h2", "httpcore", "httpx", "httpx2", "requests", "urllib3"}
URL_SIGNS = "%/:=&?~#+!$,;'@()*[]"  # what has a meaning in a URL, or is written as it is


def judged(problem: Exception, what: str) -> Exception:
    """Return the error to raise for one that reading met: ``OSError`` where another try may help, else
    ``BrokenShardError``.

    Args:
        what: names the file or shard.
    """
    reason = (str(problem).strip() or type(problem).__name__).splitlines()[0]
    text = reason if reason.startswith(what) else f"{what}: {reason}"
    status = getattr(getattr(problem, "response", None), "status_code", None) or getattr(
        problem, "status", None
    )
    if isinstance(status, int):
        return ConnectionError(text) if status in PASSING else BrokenShardError(text)
    if isinstance(problem, OSError):
        # Arrow tells of damaged files with an OSError without a number
        damaged = type(problem) is OSError and problem.errno is None
        gone = isinstance(problem, FileNotFoundError | PermissionError | IsADirectoryError)
        return BrokenShardError(text) if damaged or gone else ConnectionError(text)
    if type(problem).__module__.partition(".")[0] in NETWORK:
        return ConnectionError(text)
    return BrokenShardError(text)


def wait_for_hub(timeout: float) -> None:
    """Set how long the Hub client waits for an answer; it has one such number for the whole process."""
    from huggingface_hub import constants

    constants.HF_HUB_DOWNLOAD_TIMEOUT = math.ceil(timeout)


def ask(url: str, first: int, last: int | None, timeout: float) -> Any:
    """Send a GET for a part of a file.

    Raises:
        BrokenShardError: when the server refuses for good. OSError: when another try may help.
    """
    headers = {"Range": f"bytes={first}-{'' if last is None else last}", "User-Agent": "uniaudio"}
    try:
        request = urllib.request.Request(quote(url, safe=URL_SIGNS), headers=headers)
        return urllib.request.urlopen(request, timeout=timeout)
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
        if getattr(self.answer, "status", 206) == 200:
            self.drop(offset)

    def drop(self, count: int) -> None:
        """Read on without use: simple servers send the whole file, whatever part is asked for."""
        while count:
            dropped = self.read(min(count, BLOCK))
            if not dropped:
                return
            count -= len(dropped)

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
        with ask(url, 0, 0, timeout) as answer:
            total = getattr(answer, "headers", {}).get("Content-Range", "").rpartition("/")[2]
        if not total.isdigit():
            raise BrokenShardError(f"{url}: the server does not serve parts of files (HTTP range requests)")
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


class SchemeFile(io.RawIOBase):
    """A file that fsspec opened; errors of its many libraries become the two that a source may raise."""

    def __init__(self, opener: Any, url: str) -> None:
        self.opener, self.url = opener, url  # without its opener, a file in an archive would be closed
        self.file = opener.open()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        try:
            return self.file.seek(offset, whence)
        except Exception as problem:
            raise judged(problem, self.url) from problem

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self.file.read(len(buffer))
        except Exception as problem:
            raise judged(problem, self.url) from problem
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self.opener.close()
        super().close()


def open_by_scheme(url: str, timeout: float) -> SchemeFile:
    """Open a URL with whatever fsspec has for its scheme.

    Raises:
        BrokenShardError: when it is not there. OSError: when another try may help.
    """
    import fsspec  # only for its schemes

    if url.startswith("hf://"):
        wait_for_hub(timeout)
    try:
        return SchemeFile(fsspec.open(url, "rb"), url)
    except Exception as problem:
        raise judged(problem, url) from problem


def open_onwards(place: str, offset: int, timeout: float) -> BinaryIO:
    """Open a local file or URL for reading onwards from an offset.

    Raises:
        BrokenShardError: when it is not there. OSError: when another try may help.
    """
    if place.startswith(HTTP):
        return io.BufferedReader(HttpStream(place, offset, timeout), BLOCK)
    stream = open_in_jumps(place, timeout)
    stream.seek(offset)
    return stream


def open_in_jumps(place: str, timeout: float) -> BinaryIO:
    """Open a local file or URL for reading in jumps.

    Raises:
        BrokenShardError, OSError: as above.
    """
    if place.startswith(HTTP):
        return io.BufferedReader(HttpFile(place, timeout), BLOCK)
    if is_remote(place):
        return io.BufferedReader(open_by_scheme(place, timeout), BLOCK)
    try:
        return Path(place).open("rb")
    except OSError as problem:
        raise judged(problem, place) from problem
