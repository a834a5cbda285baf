"""Compressed archives, read onwards: bytes of the archive inside, from any of its offsets."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from typing import BinaryIO, Generic, TypeVar

import pyarrow

from uniaudio.data.sources.http import BLOCK, skip_bytes
from uniaudio.data.sources.paths import find_codec, is_remote
from uniaudio.data.sources.url_files import convert_source_errors, open_onwards

MOST_PAUSED = 128  # readers, each with an open file and the state of its decompressor

Item = TypeVar("Item")


class DecompressedFile(io.RawIOBase):
    """What a compressed file holds, read onwards.

    Args:
        place: a local file or URL whose suffix names the codec. timeout: in seconds, for a URL.

    Raises:
        BrokenShardError: when it is damaged, cut or not there. OSError: when another try may help.
    """

    def __init__(self, place: str, timeout: float) -> None:
        self.place = place
        with convert_source_errors(place):
            is_far = is_remote(place)
            inside = pyarrow.PythonFile(open_onwards(place, 0, timeout)) if is_far else pyarrow.OSFile(place)
            self.stream = pyarrow.CompressedInputStream(inside, find_codec(place))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        with convert_source_errors(self.place):
            return int(self.stream.readinto(buffer))

    def close(self) -> None:
        if not self.closed:
            self.stream.close()
        super().close()


def open_decompressed(place: str, offset: int, timeout: float) -> BinaryIO:
    """Open what a compressed file holds at one of its offsets; everything before it has to be decompressed.

    Raises:
        BrokenShardError, OSError: as ``DecompressedFile``.
    """
    stream = io.BufferedReader(DecompressedFile(place, timeout), BLOCK)
    skip_bytes(stream, offset)  # where the file became shorter, what follows is found to be cut
    return stream


class PausedReaders(Generic[Item]):
    """Readers that were left in the middle, of compressed files and of servers that send only whole files.

    Rows are read window by window, and a window begins where the last one ended: without its reader all that lies
    before would be decompressed or fetched again for every window. Readers are known by where they go on. Those left
    longest ago are given up beyond ``most``.
    """

    def __init__(self, most: int = MOST_PAUSED) -> None:
        self.most = most
        self.lock = threading.Lock()
        self.readers: OrderedDict[tuple[str, int], tuple[Item, Iterator[Item]]] = OrderedDict()
        self.process = os.getpid()

    def put(self, place: str, offset: int, first: Item, rest: Iterator[Item]) -> None:
        """Keep a reader that has read one item too many: ``first`` is the item that begins at ``offset``."""
        with self.lock:
            self.drop_inherited()
            self.readers[place, offset] = (first, rest)
            if len(self.readers) > self.most:
                self.readers.popitem(last=False)

    def take(self, place: str, offset: int) -> tuple[Item, Iterator[Item]] | None:
        """Return the item at an offset and the reader of the rest, where one was left there."""
        with self.lock:
            self.drop_inherited()
            return self.readers.pop((place, offset), None)

    def drop_inherited(self) -> None:
        """Forget the readers of the process that this one was forked from: both would move one file's position."""
        if self.process != os.getpid():
            self.process = os.getpid()
            self.readers.clear()
