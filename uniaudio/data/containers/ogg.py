"""Ogg: chained streams, streams without their end, damaged pages."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from uniaudio.data.containers.riff import Read
from uniaudio.errors import RowError

MARK = b"OggS"
HEADER = 27  # bytes, before the table of segments
MAX_PAGE = HEADER + 255 + 255 * 255
BEGIN, END = 2, 4  # flags of a page
# Ogg takes the bits of a byte from the other end than zlib does
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class OggPage:
    """A page of ``size`` bytes at a place; ``serial`` names its logical stream, in which it is number ``sequence``."""

    place: int
    size: int
    flags: int
    serial: int
    sequence: int


def read_page(data: bytes, place: int) -> OggPage | None:
    """Return the page that begins at a place, or None where no whole one does."""
    head = data[place : place + HEADER]
    if len(head) < HEADER or head[:4] != MARK:
        return None
    table = data[place + HEADER : place + HEADER + head[26]]
    size = HEADER + head[26] + sum(table)
    if len(table) < head[26] or place + size > len(data):
        return None
    serial, sequence = (int.from_bytes(head[first : first + 4], "little") for first in (14, 18))
    return OggPage(place, size, head[5], serial, sequence)


def is_whole_page(data: bytes, page: OggPage) -> bool:
    """Return whether the checksum of a page is right."""
    content = bytearray(data[page.place : page.place + page.size])
    stated = int.from_bytes(content[22:26], "little")
    content[22:26] = bytes(4)
    checksum = zlib.crc32(content.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{checksum:032b}"[::-1], 2) == stated


def iterate_pages(data: bytes, name: str) -> Iterator[OggPage]:
    """Yield the pages of a file in order; what follows the last one may be anything but a page.

    Raises:
        RowError: "truncated audio" where the last page is cut, "broken audio" where another is damaged or missing.
    """
    place = 0
    sequences: dict[int, int] = {}
    while (page := read_page(data, place)) is not None:
        if not is_whole_page(data, page):
            raise RowError("broken audio", f"{name}: the Ogg page at byte {place} is damaged")
        if page.flags & BEGIN:
            sequences.pop(page.serial, None)
        if sequences.get(page.serial, page.sequence - 1) != page.sequence - 1:
            raise RowError("broken audio", f"{name}: Ogg pages are missing before byte {place}")
        sequences[page.serial] = page.sequence
        yield page
        place += page.size
    if data.find(MARK, place) >= 0:
        later = data.find(MARK, place + 1)
        if data[place : place + 4] == MARK and later < 0:
            raise RowError("truncated audio", f"{name}: the last Ogg page is incomplete")
        raise RowError("broken audio", f"{name}: no Ogg page at byte {place}, but more pages after it")


def find_links(data: bytes, name: str) -> list[tuple[int, int]]:
    """Return (begin, end) in bytes of each stream that a file chains; nearly always there is one.

    Raises:
        RowError: "truncated audio" where the last stream has no end, "broken audio" where a page is damaged.
    """
    begins, end, flags, before = [0], 0, 0, BEGIN
    for page in iterate_pages(data, name):
        if page.flags & BEGIN and not before & BEGIN:
            begins.append(page.place)
            flags = 0
        flags |= page.flags
        before, end = page.flags, page.place + page.size
    if end and not flags & END:
        raise RowError("truncated audio", f"{name}: the Ogg stream has no end-of-stream page")
    return list(zip(begins, [*begins[1:], end], strict=True))


def is_chained(read: Read, size: int, name: str) -> bool:
    """Return whether the last page belongs to another stream than the first, by the two alone.

    Raises:
        RowError: "truncated audio" where the last page is cut or ends no stream.
    """
    first = read_page(read(0, min(size, MAX_PAGE)), 0)
    start = max(0, size - 2 * MAX_PAGE)
    tail = read(start, size - start)
    last = read_page(tail, max(0, tail.rfind(MARK)))
    if first is None or MARK not in tail:
        return False
    if last is None:
        raise RowError("truncated audio", f"{name}: the last Ogg page is incomplete")
    if not last.flags & END:
        raise RowError("truncated audio", f"{name}: the Ogg stream has no end-of-stream page")
    return first.serial != last.serial
