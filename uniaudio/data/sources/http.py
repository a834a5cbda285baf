"""Parts of files over http(s), with the answers compared with what was asked for.

A part that belongs elsewhere in a file, or to another version of it, would become other rows without a word.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO
from urllib.parse import quote

from huggingface_hub import constants

from uniaudio.data.encoded_audio import JumpStream
from uniaudio.data.sources.base import BrokenShardError
from uniaudio.hub_client import PASSING, is_hub_url, make_auth_headers, parse_retry_after

URL_SIGNS = "%/:=&?~#+!$,;'@()*[]"  # what has a meaning in a URL, or is written as it is
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
UNSATISFIED = re.compile(r"bytes \*/(\d{1,18})")
BLOCK = 1 << 20  # bytes fetched at once where a file is read in jumps
TAIL = 1 << 19  # bytes fetched at once where it is first read at its end, as for the footer of a Parquet file
LONGEST_PAUSE = 60.0  # seconds between two tries


class UnavailableError(ConnectionError):
    """A server that asks for patience.

    Args:
        after: seconds that it asks to wait; None where it names none.
    """

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


def compute_pause(tries: int, problem: OSError) -> float:
    """Return the seconds to wait before the next try: doubled from 1 s to a minute, or more where a server asks for it.

    Args:
        tries: pauses before this one. problem: that ended the last try.
    """
    retry_after = problem.after if isinstance(problem, UnavailableError) else None
    doubled = 2.0 ** min(tries, 6)  # without a bound, the power is beyond floats after a day
    return max(min(doubled, LONGEST_PAUSE), retry_after or 0.0)


@dataclass(frozen=True)
class FileVersion:
    """What tells one version of a file from another: its length in bytes and what the server says of it."""

    total: int | None = None
    etag: str | None = None
    modified: str | None = None

    def is_other_than(self, other: FileVersion) -> bool:
        """Return whether two answers speak of different files; what one of them does not say is not compared."""
        if self.etag and other.etag and self.etag.removeprefix("W/") != other.etag.removeprefix("W/"):
            return True
        pairs = ((self.total, other.total), (self.modified, other.modified))
        return any(a is not None and b is not None and a != b for a, b in pairs)


VERSIONS: dict[str, FileVersion] = {}  # of the files that this process has begun to read, by URL
LOCATIONS: dict[str, str] = {}  # where the Hub sent this process to for its large files, by their URL
GONE = {400, 401, 403, 404, 410}  # answers of such a place when its address is no longer valid


@dataclass
class Part:
    """An answer that was found to be the part that was asked for.

    Args:
        first: where in the file it begins. length: its bytes, where known. total: bytes of the file, where known.
    """

    answer: Any
    first: int
    length: int | None
    total: int | None


@contextlib.contextmanager
def convert_http_errors(url: str) -> Iterator[None]:
    """Turn what the library raises into the two errors of sources.

    Raises:
        BrokenShardError: for answers that are no proper HTTP. OSError: when another try may help.
    """
    try:
        yield
    except urllib.error.URLError as problem:
        raise ConnectionError(
            f"{url}: {getattr(problem.reason, 'strerror', None) or problem.reason}"
        ) from problem
    except (BrokenShardError, OSError):
        raise
    except (http.client.IncompleteRead, http.client.BadStatusLine) as problem:
        raise ConnectionError(f"{url}: {type(problem).__name__}") from problem
    except (http.client.HTTPException, ValueError, OverflowError) as problem:
        raise BrokenShardError(f"{url}: the server's answer cannot be read ({problem!r})") from problem


def request_part(url: str, first: int, last: int | None, timeout: float) -> Part:
    """Send a GET for a part of a file and check the answer's head.

    Raises:
        BrokenShardError: when the server refuses for good, sends another part or another version of the file, or
            compresses it. OSError: when another try may help.
    """
    headers = {
        "Range": f"bytes={first}-{'' if last is None else last}",
        "User-Agent": "uniaudio",
        "Accept-Encoding": "identity",
    }
    known = VERSIONS.get(url, FileVersion())
    if known.etag and not known.etag.startswith("W/"):
        headers["If-Range"] = known.etag
    with convert_http_errors(url):
        try:
            answer = open_url(url, headers, timeout)
        except urllib.error.HTTPError as problem:
            with problem:
                return handle_refusal(url, first, known, problem)
        try:
            return check_answer(url, first, last, answer)
        except BaseException:
            answer.close()
            raise


def open_url(url: str, headers: Mapping[str, str], timeout: float) -> Any:
    """Send a GET, to where the Hub sent an earlier one for the same file; the user's token goes to the Hub alone.

    Raises:
        urllib.error.HTTPError: for an answer that is a refusal.
    """
    if location := LOCATIONS.get(url):
        try:
            return urllib.request.urlopen(
                urllib.request.Request(location, headers=dict(headers)), timeout=timeout
            )
        except urllib.error.HTTPError as problem:
            if problem.code not in GONE:
                raise
            problem.close()
            LOCATIONS.pop(url, None)
    address = quote(url, safe=URL_SIGNS)
    request = urllib.request.Request(address, headers=dict(headers))
    auth = make_auth_headers(url)
    for name, value in auth.items():
        request.add_unredirected_header(name, value)
    answer = urllib.request.urlopen(request, timeout=timeout)
    if answer.geturl() != address and is_hub_url(url):
        LOCATIONS[url] = answer.geturl()
    return answer


def handle_refusal(url: str, first: int, known: FileVersion, problem: urllib.error.HTTPError) -> Part:
    """Return an empty part where nothing lies behind ``first``.

    Raises:
        BrokenShardError, UnavailableError: as ``request_part`` does.
    """
    if problem.code == 416:
        named = UNSATISFIED.fullmatch(problem.headers.get("Content-Range", "").strip())
        total = int(named[1]) if named else known.total
        if known.is_other_than(FileVersion(total)):
            raise BrokenShardError(f"{url}: the file changed while it was being read")
        if total is not None and first < total:
            raise BrokenShardError(f"{url}: the server does not send byte {first} of {total}")
        return Part(io.BytesIO(), first, 0, total)
    said = problem.headers.get("X-Error-Message")  # the Hub's own words
    text = f"{url}: {problem.code} {problem.reason}" + (f" ({said})" if said else "")
    if problem.code in PASSING:
        after = parse_retry_after(problem.headers.get("Retry-After"))
        raise UnavailableError(text if after is None else f"{text}, Retry-After: {after:.0f} s", after)
    raise BrokenShardError(text)


def check_answer(url: str, first: int, last: int | None, answer: Any) -> Part:
    """Compare the head of an answer with the request.

    Raises:
        BrokenShardError: when it is another part, another version of the file, or compressed.
    """
    headers = answer.headers
    encoding = (headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding != "identity":
        raise BrokenShardError(
            f"{url}: the server compresses the file ({encoding}), so its parts cannot be read"
        )
    stated = headers.get("Content-Length")
    if stated is not None and not re.fullmatch(r"\d{1,18}", stated.strip()):
        raise BrokenShardError(f"{url}: the server states a length of {stated[:40]!r} bytes")
    length = int(stated) if stated is not None else None
    if answer.status == 206:
        named = CONTENT_RANGE.fullmatch((headers.get("Content-Range") or "").strip())
        if named is None:
            raise BrokenShardError(f"{url}: the server does not say which part of the file it sends")
        begin, end = int(named[1]), int(named[2])
        total = int(named[3]) if named[3] != "*" else None
        wanted = [end if last is None else last, end if total is None else total - 1]
        if begin != first or end != min(wanted) or (last is None and total is not None and end != total - 1):
            requested = f"{first} to {'the end' if last is None else last}"
            raise BrokenShardError(f"{url}: the server sends bytes {begin} to {end} instead of {requested}")
        if length is not None and length != end - begin + 1:
            raise BrokenShardError(f"{url}: the server states {length} bytes for a part of {end - begin + 1}")
        length = end - begin + 1
    elif answer.status == 200:
        first, total = 0, length
    else:
        raise BrokenShardError(f"{url}: the server answers {answer.status} instead of a part of the file")
    version = FileVersion(total, headers.get("ETag"), headers.get("Last-Modified"))
    known = VERSIONS.setdefault(url, version)
    if known.is_other_than(version):
        raise BrokenShardError(f"{url}: the file changed while it was being read")
    return Part(answer, first, length, total)


def skip_bytes(stream: io.RawIOBase | BinaryIO, count: int) -> None:
    """Read so many bytes without use, fewer at the end."""
    while count > 0 and (data := stream.read(min(count, BLOCK))):
        count -= len(data)


class HttpStream(io.RawIOBase):
    """A file at an http(s) URL, read onwards from an offset.

    A connection that ends early is an ``OSError``, never the end of the file.

    Attributes:
        size: bytes of the file, where the server says. serves_parts: whether it sends parts of files; one that does not
            sends the whole file for every offset.
    """

    def __init__(self, url: str, offset: int, timeout: float) -> None:
        self.url = url
        part = request_part(url, offset, None, timeout)
        self.answer, self.left, self.size = part.answer, part.length, part.total
        self.serves_parts = getattr(part.answer, "status", 206) == 206
        skip_bytes(
            self, offset - part.first
        )  # simple servers send the whole file, whatever part is asked for

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with convert_http_errors(self.url):
            count = int(self.answer.readinto(buffer))
        if self.left is not None:
            self.left -= count
            if not count and len(buffer) and self.left > 0:
                raise ConnectionError(f"{self.url}: the connection ended {self.left} bytes early")
        return count

    def close(self) -> None:
        self.answer.close()
        super().close()


class HttpFile(JumpStream):
    """A file at an http(s) URL, read in jumps; a small one is fetched whole.

    Raises:
        BrokenShardError: when the server does not serve parts of files, or another part than was asked for.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url, timeout
        self.kept_from, self.kept = 0, b""
        known = VERSIONS.get(url, FileVersion()).total
        if known is None:
            part = request_part(url, 0, 0, timeout)
            part.answer.close()
            if getattr(part.answer, "status", 0) != 206 or part.total is None:
                raise BrokenShardError(
                    f"{url}: the server does not serve parts of files (HTTP range requests)"
                )
            known = part.total
        self.size = known

    def keep(self, first: int, last: int) -> None:
        """Fetch the bytes ``first`` to ``last`` in one request, for the reads that follow."""
        self.kept_from, self.kept = first, b""
        self.kept = fetch_range(self.url, first, last - first + 1, self.timeout)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        wanted = min(len(buffer), self.size - self.place)
        if wanted <= 0:
            return 0
        if not self.kept and (self.size <= BLOCK or self.place + wanted == self.size):
            self.keep(0 if self.size <= BLOCK else max(0, self.size - max(wanted, TAIL)), self.size - 1)
        begin = self.place - self.kept_from
        data = self.kept[begin : begin + wanted] if begin >= 0 else b""
        data = data or fetch_range(self.url, self.place, wanted, self.timeout)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def fetch_range(url: str, first: int, length: int, timeout: float) -> bytes:
    """Return a part of a file in one request.

    Raises:
        BrokenShardError, OSError: as ``request_part`` does, and where the connection ends early.
    """
    part = request_part(url, first, first + length - 1, timeout)
    with part.answer, convert_http_errors(url):
        if part.first != first or part.length != length:
            raise BrokenShardError(f"{url}: the server does not send the requested part")
        data: bytes = part.answer.read(length)
    if len(data) != length:
        raise ConnectionError(f"{url}: {len(data)} of {length} bytes came")
    return data


def fetch_length(url: str, timeout: float) -> int | None:
    """Return the bytes of a file by one request for its first byte, None where that fails or no length is stated.

    Not by HEAD: a signed URL is often valid for GET alone, and some servers know no HEAD. What else the answer states
    of the file's version is forgotten, for whoever reads the file later may be served by another mirror.
    """
    if is_hub_url(url) and constants.is_offline_mode():
        return None
    is_known = url in VERSIONS
    try:
        part = request_part(url, 0, 0, timeout)
    except (BrokenShardError, OSError):
        return None
    finally:
        if not is_known:
            VERSIONS.pop(url, None)
    part.answer.close()
    return part.total
