"""FLAC: where the last frame ends, for streams whose header states no length or a wrong one."""

from __future__ import annotations

from dataclasses import dataclass

from uniaudio.data.containers.riff import Read

MARK = b"fLaC"
# of frames with as many samples each, which nearly all have, and others
FRAME_MARKS = (b"\xff\xf8", b"\xff\xf9")
INFO_END = 42  # bytes: the mark, and the first block of metadata with its header
TOTAL = (1 << 36) - 1  # of the header's number of samples
MAX_FRAME = 1 << 16  # bytes, where the header does not say
TAGS = 1024  # bytes that may stand behind the last frame
BLOCK_SIZES = (0, 192, 576, 1152, 2304, 4608, 0, 0, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)


def build_checksum_table(polynomial: int, bits: int) -> tuple[int, ...]:
    """Return what each byte does to a checksum of so many bits."""
    table = []
    for byte in range(256):
        value = byte << (bits - 8)
        for _ in range(8):
            value = (value << 1) ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
        table.append(value)
    return tuple(table)


HEADER_CHECKSUM = build_checksum_table(0x07, 8)
FRAME_CHECKSUM = build_checksum_table(0x8005, 16)


@dataclass(frozen=True)
class StreamInfo:
    """The part of the header that is needed here. ``total`` samples; 0 where nobody states them."""

    min_block: int
    max_block: int
    max_frame: int
    rate: int
    channels: int
    total: int


def read_stream_info(read: Read) -> StreamInfo | None:
    """Return what the header states, or None where the file does not begin with it."""
    head = read(0, INFO_END)
    if len(head) < INFO_END or head[:4] != MARK or head[4] & 0x7F:
        return None
    facts = int.from_bytes(head[18:26], "big")
    return StreamInfo(
        int.from_bytes(head[8:10], "big"),
        int.from_bytes(head[10:12], "big"),
        int.from_bytes(head[15:18], "big"),
        facts >> 44,
        (facts >> 41 & 7) + 1,
        facts & TOTAL,
    )


def state_total(data: bytes, total: int) -> bytes:
    """Return a FLAC file whose header states another number of samples."""
    facts = int.from_bytes(data[18:26], "big") & ~TOTAL | total
    return data[:18] + facts.to_bytes(8, "big") + data[26:]


def read_frame_samples(data: bytes, place: int, info: StreamInfo) -> tuple[int, int] | None:
    """Return (first sample, number of samples) of the frame that begins at a place, or None where none does."""
    head = data[place : place + 16]
    if len(head) < 6 or head[0] != 0xFF or head[1] & 0xFE != 0xF8:
        return None
    size_code, rate_code, channel_code = head[2] >> 4, head[2] & 15, head[3] >> 4
    channels = channel_code + 1 if channel_code < 8 else 2
    if not size_code or rate_code == 15 or head[3] & 1 or channel_code > 10 or channels != info.channels:
        return None
    ones = 8 - (head[4] ^ 0xFF).bit_length()  # the number is written as in UTF-8, with up to 36 bits
    extra = max(0, ones - 1)
    number = head[4] & (0x7F >> ones)
    if ones == 1 or ones > 7 or any(byte & 0xC0 != 0x80 for byte in head[5 : 5 + extra]):
        return None
    for byte in head[5 : 5 + extra]:
        number = number << 6 | byte & 0x3F
    end = 5 + extra
    block = BLOCK_SIZES[size_code]
    if size_code in (6, 7):
        block = int.from_bytes(head[end : end + size_code - 5], "big") + 1
        end += size_code - 5
    end += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if end >= len(head) or block > info.max_block:
        return None
    checksum = 0
    for byte in head[:end]:
        checksum = HEADER_CHECKSUM[checksum ^ byte]
    if checksum != head[end]:
        return None
    is_variable = head[1] & 1
    if not is_variable and info.min_block != info.max_block:
        return None
    return (number if is_variable else number * info.min_block), block


def is_whole_frame(data: bytes) -> bool:
    """Return whether the checksum at the end of a frame is that of the frame; tags behind it are left out."""
    for tail in (b"TAG", b"APETAGEX", b"ID3"):
        if (place := data.rfind(tail)) > 0:
            data = data[:place]
    checksum = 0
    for byte in data:
        checksum = checksum << 8 & 0xFFFF ^ FRAME_CHECKSUM[checksum >> 8 ^ byte]
    return checksum == 0


@dataclass(frozen=True)
class Ending:
    """How a stream ends whose header is wrong: ``end`` samples up to there, and whether the last frame is whole."""

    total: int
    end: int
    is_whole: bool


def find_wrong_total(read: Read, size: int) -> Ending | None:
    """Return how a stream ends, where that is not as its header states; None where it is, or cannot be known.

    A header without a length, or with one that is smaller than what follows, would have the stream used in part.
    """
    info = read_stream_info(read)
    if info is None:
        return None
    wanted = min(size, (info.max_frame or MAX_FRAME) + TAGS)
    data = read(size - wanted, wanted)
    last, end = -1, 0
    for mark in FRAME_MARKS:
        place = len(data)
        while (place := data.rfind(mark, 0, place + 1)) >= 0:
            samples = read_frame_samples(data, place, info)
            if samples is None:
                continue
            if sum(samples) == info.total:
                return None  # samples may look like a frame: the one that fits decides
            if place > last:
                last, end = place, sum(samples)
    if last < 0:
        return None
    ending = Ending(info.total, end, is_whole_frame(data[last:]))
    return ending if ending.is_whole or ending.end < ending.total or not ending.total else None
