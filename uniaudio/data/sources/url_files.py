"""Files by URL: http(s) with the standard library, other schemes through fsspec; which errors may pass."""

from __future__ import annotations

import contextlib
import errno
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from uniaudio.data.sources.base import BrokenShardError
from uniaudio.data.sources.http import BLOCK, HttpFile, HttpStream, UnavailableError
from uniaudio.data.sources.paths import CREDENTIALS, HTTP, is_remote
from uniaudio.errors import UserError, read_first_line
from uniaudio.hub_client import PASSING, TRANSPORT

BLOCK_OF_STORE = 8 << 20  # bytes fetched at once from a store; each open shard holds one or two of them
REFUSED = (401, 403)  # statuses of a store that does not accept the credentials


def classify_error(problem: Exception, what: str) -> Exception:
    """Return the error to raise for one that reading met: ``OSError`` where another try may help, else
    ``BrokenShardError``.

    Args:
        what: names the file or shard.
    """
    if isinstance(problem, UnavailableError):
        return problem  # it says how long to wait
    reason = read_first_line(problem)
    text = reason if reason.startswith(what) else f"{what}: {reason}"
    if is_refusal(problem):
        return BrokenShardError(f"{text}; {CREDENTIALS}")
    status = read_status(problem)
    if status is not None:
        return ConnectionError(text) if status in PASSING else BrokenShardError(text)
    if isinstance(problem, FileNotFoundError):  # stores give their own name of the file as the reason
        return BrokenShardError(f"{what}: there is no such file")
    if isinstance(problem, OSError):
        # Arrow tells of damaged files with an OSError without a number
        damaged = type(problem) is OSError and problem.errno is None
        return (
            BrokenShardError(text)
            if damaged or isinstance(problem, IsADirectoryError)
            else ConnectionError(text)
        )
    if type(problem).__module__.partition(".")[0] in TRANSPORT:
        return ConnectionError(text)
    return BrokenShardError(text)


@contextlib.contextmanager
def convert_source_errors(what: str) -> Iterator[None]:
    """Turn what a library raises into one of the two errors that a source may raise, see ``classify_error``.

    Raises:
        BrokenShardError: when it is damaged or not there. OSError: when another try may help.
    """
    try:
        yield
    except (UserError, BrokenShardError):
        raise
    except Exception as problem:
        raise classify_error(problem, what) from problem


def read_status(problem: Exception) -> int | None:
    """Return the status with which a server answered, where an error has one."""
    response = getattr(problem, "response", None)
    places = (
        getattr(response, "status_code", None),
        getattr(problem, "status", None),
        getattr(problem, "code", None),
    )
    return next((status for status in places if isinstance(status, int) and status), None)


def is_refusal(problem: Exception) -> bool:
    """Return whether an object store refuses a request for its credentials; expired ones are a "Bad Request" of S3."""
    if isinstance(problem, PermissionError) or (
        isinstance(problem, OSError) and problem.errno == errno.EINVAL
    ):
        return True
    if type(problem) is OSError and str(problem).startswith("Forbidden: "):  # of gcsfs
        return True
    kind = type(problem)
    library = kind.__module__.partition(".")[0]
    if library == "gcsfs":
        return read_status(problem) in REFUSED
    return library in ("botocore", "google") and any(
        word in kind.__name__ for word in ("Credential", "Token", "Profile", "Refresh")
    )


def wait_for_hub(timeout: float) -> None:
    """Set how long the Hub client waits for an answer; it has one such number for the whole process."""
    from huggingface_hub import constants

    constants.HF_HUB_DOWNLOAD_TIMEOUT = math.ceil(timeout)


class SchemeFile(io.RawIOBase):
    """A file that fsspec opened, which raises ``BrokenShardError`` and ``OSError`` alone."""

    def __init__(self, opener: Any, url: str) -> None:
        self.opener, self.url = opener, url  # without its opener, a file in an archive would be closed
        self.file = opener.open()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with convert_source_errors(self.url):
            return self.file.seek(offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with convert_source_errors(self.url):
            data = self.file.read(len(buffer))
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

    with convert_source_errors(url):
        return SchemeFile(fsspec.open(url, "rb", **choose_store_options(url, timeout)), url)


def choose_store_options(url: str, timeout: float) -> dict[str, Any]:
    """Return the options of fsspec for a URL, and let the Hub's client know the timeout."""
    if url.startswith("hf://"):
        wait_for_hub(timeout)
    if url.startswith(("s3://", "s3a://")):
        limits = {"connect_timeout": timeout, "read_timeout": timeout}
        return {"config_kwargs": limits, "default_block_size": BLOCK_OF_STORE}
    if url.startswith(("gs://", "gcs://")):
        from aiohttp import ClientTimeout  # of gcsfs

        limit = ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)
        return {"requests_timeout": limit, "block_size": BLOCK_OF_STORE}
    return {}


def find_store_size(url: str, timeout: float) -> int:
    """Return the bytes of a file by a scheme of fsspec.

    Raises:
        BrokenShardError: when it is not there. OSError: when another try may help.
    """
    import fsspec

    with convert_source_errors(url):
        store, path = fsspec.url_to_fs(url, **choose_store_options(url, timeout))
        return int(store.info(path)["size"])


def read_store_range(url: str, first: int, count: int, timeout: float) -> bytes:
    """Return bytes of a file by a scheme of fsspec, in one request where its store can do that.

    Raises:
        BrokenShardError, OSError: as ``find_store_size``, and where fewer bytes came.
    """
    import fsspec

    with convert_source_errors(url):
        store, path = fsspec.url_to_fs(url, **choose_store_options(url, timeout))
        data: bytes = store.cat_file(path, start=first, end=first + count)
    if len(data) != count:
        raise ConnectionError(f"{url}: {len(data)} of {count} bytes came")
    return data


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
    with convert_source_errors(place):
        return Path(place).open("rb")
