"""WAV files (RIFF, RIFX, RF64): whether the samples that the header states are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from uniaudio.errors import RowError

MARKS = (b"RIFF", b"RIFX", b"RF64")
MAX_CHUNKS = 1000
SLACK = 64  # bytes: some writers count their header as samples
SLACK_SECONDS = 0.01
LEFTOVER = 1024  # bytes behind the samples that are no chunk and may be anything
LEFTOVER_MARKS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")
# sizes that mean "unknown": what programs write that cannot go back in a pipe, some of them less their header
UNKNOWN_SIZES = ((0, 0), (0x7FFFF000, 0x80000FFF), (0xFFFFF000, 0xFFFFFFFF), (1 << 63, 1 << 64))

PCM = 1  # WAV's number for plain samples

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Samples:
    """Where the samples are: ``present`` bytes from ``start`` on, of which the header states ``stated``.

    Args:
        frames: how many samples of a channel that is, 0 where only a decoder knows. rate: in Hz.
        order: of the header's bytes.
    """

    start: int
    stated: int
    present: int
    frames: int
    rate: int
    order: Literal["little", "big"]


def is_wave(head: bytes) -> bool:
    """Return whether the first 12 bytes of a file are those of a WAV file."""
    return head[:4] in MARKS and head[8:] == b"WAVE"


def is_unknown_size(size: int) -> bool:
    """Return whether a stated size stands for "to the end of the file"."""
    return any(lowest <= size <= highest for lowest, highest in UNKNOWN_SIZES)


def check_wave(read: Read, size: int, name: str) -> Samples | None:
    """Compare the size of the samples that a WAV file states with the file; return where they are.

    Args:
        read: returns ``count`` bytes from ``first`` on. size: of the file, in bytes. name: how messages call it.

    Raises:
        RowError: "truncated audio" where fewer bytes of samples are there than stated, or many more; "empty audio".
    """
    order: Literal["little", "big"] = "big" if read(0, 4) == b"RIFX" else "little"
    place, long_size, facts = 12, None, b""
    for _ in range(MAX_CHUNKS):
        chunk = read(place, 24)
        if len(chunk) < 8:
            return None
        kind, stated = chunk[:4], int.from_bytes(chunk[4:8], order)
        if kind == b"fmt ":
            facts = chunk[8:]
        elif kind == b"ds64":
            long_size = int.from_bytes(chunk[16:24], order)
        elif kind == b"data":
            if stated == 0xFFFFFFFF and long_size is not None:
                stated = long_size
            slack = max(SLACK, int(SLACK_SECONDS * int.from_bytes(facts[8:12], order)))
            present = check_samples(read, size, place + 8, stated, slack, name)
            numbers = [int.from_bytes(facts[i : i + 2], order) for i in (0, 2, 12, 14)]
            block = numbers[1] * numbers[3] // 8
            is_plain = numbers[0] == PCM and block and numbers[2] in (block, 0) and not numbers[3] % 8
            frames, rate = present // block if is_plain else 0, int.from_bytes(facts[4:8], order)
            return Samples(place + 8, stated, present, frames, rate, order)
        place += 8 + stated + stated % 2
    return None


def state_size(data: bytes, samples: Samples) -> bytes:
    """Return a WAV file whose header states as many bytes of samples as there are."""
    size = min(samples.present, 0xFFFFFFFE).to_bytes(4, samples.order)
    return data[: samples.start - 4] + size + data[samples.start :]


def check_samples(read: Read, size: int, start: int, stated: int, slack: int, name: str) -> int:
    """Compare the stated bytes of samples from ``start`` on with those that are there, and return how many those are.

    Args:
        slack: bytes that may be missing.

    Raises:
        RowError: as ``check_wave``.
    """
    present = size - start
    if stated == 0 and present and has_only_chunks(read, start, size):
        raise RowError("empty audio", name)
    if is_unknown_size(stated):
        return present
    if stated > present + slack:
        raise RowError(
            "truncated audio", f"{name}: {stated} bytes of samples are stated, {present} are present"
        )
    end = start + stated
    if size - end > LEFTOVER and not any(
        has_only_chunks(read, first, size) for first in (end, end + end % 2)
    ):
        raise RowError(
            "truncated audio", f"{name}: {stated} bytes of samples are stated, {size - end} more follow them"
        )
    return min(stated, present)


def has_only_chunks(read: Read, place: int, size: int) -> bool:
    """Return whether nothing but chunks, tags or padding follows from a place on."""
    for _ in range(MAX_CHUNKS):
        chunk = read(place, 12)
        if len(chunk) < 8 or chunk.startswith(LEFTOVER_MARKS):
            return True
        if not all(32 <= byte < 127 for byte in chunk[:4]):
            break
        length = min(int.from_bytes(chunk[4:8], "big"), int.from_bytes(chunk[4:8], "little"))
        if place + 8 + length > size:
            break
        place += 8 + length + length % 2
    return size - place <= LEFTOVER or not any(read(place, size - place))
