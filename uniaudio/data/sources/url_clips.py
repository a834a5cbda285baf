"""Clips that rows name by URL: read in parts where that is enough, else fetched once and kept in a bounded cache."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from uniaudio.data.encoded_audio import SMALL_FILE, RemoteClip
from uniaudio.data.sources.clip_cache import locate_in_cache, open_cached_clip, store_clip
from uniaudio.data.sources.http import LOCATIONS, VERSIONS, HttpStream, fetch_range
from uniaudio.data.sources.paths import HTTP
from uniaudio.data.sources.retries import call_patiently
from uniaudio.data.sources.url_files import find_store_size, read_store_range
from uniaudio.errors import RowError
from uniaudio.units import GIB

BLOCK = 1 << 18  # bytes fetched at once where a file is read in jumps
MOST_AHEAD = 8  # blocks fetched at once where it is read onwards
KEPT_BLOCKS, KEPT_CLIPS = 16, 16  # blocks of a clip, and clips of a process, that stay in memory
LARGEST = 4 << 30  # bytes of a clip that is fetched whole
PAGE = (b"<", b"{")  # how HTML, XML and JSON begin, and no file of audio


@dataclass(frozen=True)
class UrlClip(RemoteClip):
    """A clip at an http(s) URL, or at one of a scheme that fsspec knows.

    Args:
        timeout: seconds after which a connection that sends nothing is given up.

    Raises:
        RowError: by all methods, "missing file" where the server refuses it and "unreachable file" where tries do not
            help.
    """

    url: str
    timeout: float

    @property
    def size(self) -> int:
        return OPENED.open(self).size

    def read(self, first: int, count: int) -> bytes:
        return OPENED.open(self).read(first, count)

    def fetch(self) -> Path | bytes:
        return OPENED.open(self).fetch()


class OpenedClip:
    """What a process has of a clip: its size and some of its blocks, or all of it.

    Attributes:
        content: the whole file, opened in the cache or in memory; None where it is read in parts.
    """

    def __init__(self, clip: UrlClip) -> None:
        self.clip, self.lock = clip, threading.Lock()
        self.blocks: OrderedDict[int, bytes] = OrderedDict()
        self.next, self.ahead = 0, 1  # the block behind the last that was fetched; how many came at once
        self.content: bytes | FileIO | None = open_cached_clip(clip.url)
        if isinstance(self.content, FileIO):
            self.size = os.fstat(self.content.fileno()).st_size
        else:
            call_patiently(self.read_beginning, clip.url)

    def read_beginning(self) -> None:
        """Fetch a small file, or one of which the server does not send parts; of others the first block."""
        url, timeout = self.clip.url, self.clip.timeout
        size: int | None
        if url.startswith(HTTP):
            with HttpStream(url, 0, timeout) as stream:
                size = stream.size
                if size is not None:
                    check_size(size, url)
                is_in_parts = getattr(stream.answer, "status", 0) == 206
                is_part = is_in_parts and size is not None and size > SMALL_FILE
                data = read_all(stream, min(BLOCK, size) if is_part and size else size, url)
        else:
            size = find_store_size(url, timeout)
            check_size(size, url)
            is_part = size > SMALL_FILE
            data = read_store_range(url, 0, BLOCK if is_part else size, timeout)
        refuse_page(data, url)
        if is_part and size is not None:
            self.size = size
            self.blocks[0] = data
        else:
            self.keep(data)

    def keep(self, data: bytes) -> None:
        """Keep the whole file, on disk where that is possible."""
        self.size = len(data)
        self.content = data
        if store_clip(self.clip.url, data):
            self.content = open_cached_clip(self.clip.url) or data
        self.blocks.clear()

    def read(self, first: int, count: int) -> bytes:
        """See ``UrlClip.read``."""
        count = max(0, min(count, self.size - first))
        with self.lock:
            if isinstance(self.content, bytes):
                return self.content[first : first + count]
            if self.content is not None:
                return os.pread(self.content.fileno(), count, first)
            if not count:
                return b""
            numbers = range(first // BLOCK, (first + count - 1) // BLOCK + 1)
            missing = [number for number in numbers if number not in self.blocks]
            if missing:
                self.fetch_blocks(missing[0], missing[-1])
            data = b"".join(self.blocks[number] for number in numbers)
            while len(self.blocks) > KEPT_BLOCKS:
                self.blocks.popitem(last=False)
        begin = first - numbers[0] * BLOCK
        return data[begin : begin + count]

    def fetch_blocks(self, first: int, last: int) -> None:
        """Fetch blocks in one request; ever more of them where the file is read onwards."""
        self.ahead = min(2 * self.ahead, MOST_AHEAD) if first == self.next else 1
        last = max(last, first + self.ahead - 1)
        begin, end = first * BLOCK, min((last + 1) * BLOCK, self.size)
        data = call_patiently(lambda: self.read_range(begin, end - begin), self.clip.url)
        for place in range(0, len(data), BLOCK):
            number = first + place // BLOCK
            self.blocks[number] = data[place : place + BLOCK]
            self.blocks.move_to_end(number)
            self.next = number + 1

    def read_range(self, first: int, count: int) -> bytes:
        """Return bytes of the file in one request."""
        if self.clip.url.startswith(HTTP):
            return fetch_range(self.clip.url, first, count, self.clip.timeout)
        return read_store_range(self.clip.url, first, count, self.clip.timeout)

    def fetch(self) -> Path | bytes:
        """Return the whole file, in the cache or in memory."""
        with self.lock:
            if self.content is None:
                self.keep(call_patiently(lambda: self.read_range(0, self.size), self.clip.url))
        if isinstance(self.content, bytes):
            return self.content
        path = locate_in_cache(self.clip.url)
        return path if path.is_file() else self.read(0, self.size)


class OpenedClips:
    """The clips that a process used last; those before are forgotten, and what is known of their addresses, too."""

    def __init__(self) -> None:
        self.lock, self.process = threading.Lock(), os.getpid()
        self.clips: OrderedDict[UrlClip, OpenedClip] = OrderedDict()

    def open(self, clip: UrlClip) -> OpenedClip:
        """Return what is known of a clip, after a request where nothing is."""
        with self.lock:
            if self.process != os.getpid():  # forked: connections and files of the other process are its own
                self.clips.clear()
                self.process = os.getpid()
            known = self.clips.get(clip)
            if known is not None:
                self.clips.move_to_end(clip)
                return known
        opened = OpenedClip(clip)
        with self.lock:
            self.clips[clip] = opened
            while len(self.clips) > KEPT_CLIPS:
                forgotten, _ = self.clips.popitem(last=False)
                VERSIONS.pop(forgotten.url, None)
                LOCATIONS.pop(forgotten.url, None)
        return opened


OPENED = OpenedClips()


def read_all(stream: HttpStream, size: int | None, url: str) -> bytes:
    """Return so many bytes of a file, or all of it where its size is not known.

    Raises:
        RowError: "file too large". ConnectionError: where it is shorter than it should be.
    """
    data = io.BufferedReader(stream, BLOCK).read(LARGEST + 1 if size is None else size)
    check_size(len(data), url)
    if size is not None and len(data) < size:
        raise ConnectionError(f"{url}: {len(data)} of {size} bytes came")
    return data


def check_size(size: int, url: str) -> None:
    """Refuse a file that no clip is as large as.

    Raises:
        RowError: "file too large".
    """
    if size > LARGEST:
        raise RowError("file too large", f"{url}: {size / GIB:.1f} GiB")


def refuse_page(data: bytes, url: str) -> None:
    """Refuse what servers send in place of a clip without saying so, such as a page to log in or an error as JSON.

    Raises:
        RowError: "unreachable file".
    """
    if data[:64].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(PAGE):
        begin = data[:40].decode("utf-8", "replace")
        raise RowError(
            "unreachable file", f"{url}: the server sends a page or a message, not audio ({begin!r})"
        )
