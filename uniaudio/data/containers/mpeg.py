"""MPEG audio (MP3): how many frames there are, where the file states no number or a wrong one."""

from __future__ import annotations

from dataclasses import dataclass

from uniaudio.data.containers.riff import LEFTOVER_MARKS, Read
from uniaudio.errors import RowError

JUNK = 1 << 16  # bytes before the first frame that are looked through
FRAMES_IN_A_ROW = 3  # that make a frame out of what may be anything
SLACK = 512  # bytes, besides a hundredth, by which the stated size may be wrong
# by the bits of the version
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}
KBITS = {  # by (whether MPEG 1, layer)
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
KIND = 0xFFFE0C00  # bits of a header that all frames of a file share: version, layer, rate


@dataclass(frozen=True)
class FrameKind:
    """What a frame's header says: its ``size`` in bytes, the ``samples`` of a channel and their ``rate``."""

    size: int
    samples: int
    rate: int
    layer: int
    tag: int


@dataclass(frozen=True)
class Survey:
    """What an MPEG file holds.

    Args:
        start, end: of its frames, in bytes. samples: of a channel in all of them, of ``frame_samples`` each.
        is_stated: whether a tag states the length, so that the decoder knows it; ``samples`` is 0 then.
    """

    start: int
    end: int
    samples: int
    frame_samples: int
    is_stated: bool


def parse_header(header: int) -> FrameKind | None:
    """Return what the four bytes of a frame's header say, or None where they are none."""
    version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
    bitrate, rate = header >> 12 & 15, header >> 10 & 3
    if header >> 21 != 0x7FF or version == 1 or layer == 4 or rate == 3 or bitrate in (0, 15):
        return None
    is_first = version == 3
    bits = 1000 * KBITS[is_first, layer][bitrate - 1]
    hertz, padding = RATES[version][rate], header >> 9 & 1
    samples = {1: 384, 2: 1152, 3: 1152 if is_first else 576}[layer]
    size = (12 * bits // hertz + padding) * 4 if layer == 1 else samples // 8 * bits // hertz + padding
    is_mono = header >> 6 & 3 == 3
    side = {(True, False): 32, (True, True): 17, (False, False): 17, (False, True): 9}[is_first, is_mono]
    return FrameKind(size, samples, hertz, layer, 4 + side)


def read_id3_size(head: bytes) -> int:
    """Return the size of an ID3v2 tag that a file begins with, 0 where there is none."""
    if len(head) < 10 or head[:3] != b"ID3" or any(byte & 0x80 for byte in head[6:10]):
        return 0
    size = 0
    for byte in head[6:10]:
        size = size << 7 | byte
    return 10 + size + (10 if head[5] & 0x10 else 0)


def parse_frame(data: bytes, place: int, like: int | None = None) -> FrameKind | None:
    """Return the frame at a place, if its header agrees with one that came before."""
    header = int.from_bytes(data[place : place + 4], "big")
    if place + 4 > len(data) or (like is not None and (header ^ like) & KIND):
        return None
    return parse_header(header)


def find_frames(data: bytes, place: int, last: int, like: int | None = None) -> int | None:
    """Return where the first frame from a place on begins, but not behind ``last``; some more must follow it."""
    while (place := data.find(b"\xff", place, last + 1)) >= 0:
        first, at = int.from_bytes(data[place : place + 4], "big") if like is None else like, place
        for before in range(FRAMES_IN_A_ROW):
            frame = parse_frame(data, at, first)
            if frame is None:
                break
            at += frame.size
            if at >= len(data) and before:
                return place
        else:
            return place
        place += 1
    return None


def read_stated_bytes(data: bytes, start: int, frame: FrameKind) -> int | None:
    """Return the size in bytes that the tag in the first frame states, 0 where it states none; None without a tag."""
    place = start + frame.tag
    if data[place : place + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(data[place + 4 : place + 8], "big")
        if not flags & 1:
            return None
        return int.from_bytes(data[place + 12 : place + 16], "big") if flags & 2 else 0
    if data[start + 36 : start + 40] == b"VBRI":
        return int.from_bytes(data[start + 46 : start + 50], "big")
    return None


def survey(read: Read, size: int, name: str, is_thorough: bool) -> Survey | None:
    """Look through the frames of a file; None where it is none, or of a kind without sizes ("free format").

    Args:
        is_thorough: whether to look at every frame of a file that states its length, too.

    Raises:
        RowError: "truncated audio" where frames are missing at the end, "broken audio" where others are.
    """
    begin, tag = 0, read_id3_size(read(0, 10))
    while tag:
        begin, tag = begin + tag, read_id3_size(read(begin + tag, 10))
    head = read(begin, JUNK + 4096)
    start = find_frames(head, 0, JUNK)
    frame = parse_frame(head, start) if start is not None else None
    if start is None or frame is None:
        return None
    stated = read_stated_bytes(head, start, frame)
    first = begin + start
    if stated:
        slack = max(SLACK, stated // 100)
        if size - first + slack < stated:
            raise RowError(
                "truncated audio", f"{name}: {stated} bytes of MP3 are stated, {size - first} are present"
            )
        behind = read(first + stated, 4)
        more = parse_frame(behind, 0, int.from_bytes(head[start : start + 4], "big"))
        if more is None and not is_thorough:
            return Survey(first, size, 0, frame.samples, is_stated=True)
    data = read(first, size - first)
    end, frames, is_joined = count_mpeg_frames(data, name)
    is_stated = bool(stated) and not is_joined and abs(end - (stated or 0)) <= max(SLACK, end // 100)
    if not is_stated and stated is not None:
        frames -= 1  # the frame of the tag has no sound
    return Survey(first, first + end, 0 if is_stated else frames * frame.samples, frame.samples, is_stated)


def count_mpeg_frames(data: bytes, name: str) -> tuple[int, int, bool]:
    """Return (their size in bytes, their number, whether several files were joined) of frames at the begin of ``data``.

    Raises:
        RowError: as ``survey``.
    """
    like = int.from_bytes(data[:4], "big")
    kinds: dict[bytes, FrameKind | None] = {}
    place = frames = 0
    is_joined = False
    while place + 4 <= len(data):
        head = data[place : place + 4]
        key = head[:3]
        if key not in kinds:
            header = int.from_bytes(head, "big")
            kinds[key] = None if (header ^ like) & KIND else parse_header(header)
        frame = kinds[key]
        if frame is None:
            further = find_frames(data, place, len(data), like)
            if further is None or data.startswith(LEFTOVER_MARKS, place):
                if further is None or read_id3_size(data[place : place + 10]) != further - place:
                    break
                place, is_joined = further, True
                continue
            raise RowError("broken audio", f"{name}: {further - place} bytes at {place} are not MP3 frames")
        place += frame.size
        frames += 1
    if place > len(data):
        raise RowError("truncated audio", f"{name}: the last MP3 frame is incomplete")
    return place, frames, is_joined


def make_tag_frame(data: bytes, frames: int) -> bytes:
    """Return a frame that states the number of frames that follow it, as encoders write it.

    Args:
        data: begins with the first of the frames.
    """
    header = int.from_bytes(data[:4], "big") & ~0x200 | 0x10000  # no padding, no checksum
    kinds = (
        (header & ~0xF000 | bits << 12, parse_header(header & ~0xF000 | bits << 12)) for bits in range(1, 15)
    )
    header, kind = next(
        (header, kind) for header, kind in kinds if kind is not None and kind.size >= kind.tag + 16
    )
    content = bytearray(kind.size)
    content[:4] = header.to_bytes(4, "big")
    content[kind.tag : kind.tag + 12] = b"Xing" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    return bytes(content)
