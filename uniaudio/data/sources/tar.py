"""Tar archives read by hand, for ``tarfile`` takes damage in the middle for the end; files in tars that a row names."""

from __future__ import annotations

import contextlib
import os
import posixpath
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from uniaudio.config.file_signatures import SIGNATURE_BYTES, describe_signature
from uniaudio.data.encoded_audio import EncodedAudio, FilePart
from uniaudio.data.sources.base import BrokenShardError
from uniaudio.data.sources.compressed import open_decompressed
from uniaudio.data.sources.folder_walk import is_clip
from uniaudio.data.sources.http import BLOCK, HttpStream
from uniaudio.data.sources.paths import find_codec, is_remote
from uniaudio.data.sources.url_files import open_onwards
from uniaudio.errors import RowError

RECORD = 512  # bytes: tars are made of them
LONG_NAME = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
# what becomes of names in other encodings: names are shown, nothing is opened by them
ODD_NAMES = "backslashreplace"
LARGEST_TEXT = 1 << 24  # bytes of a member that is no audio; larger ones are skipped
IN_ARCHIVE = "::"  # between the path of a tar and the name of a file in it


@dataclass(frozen=True)
class Member:
    """A file in a tar.

    Args:
        start, end: where its first header begins and where the next one does.
        content: a part of the tar for audio on disk in a tar that is not compressed, else bytes; None for a large
            file that is no audio.
    """

    name: str
    start: int
    end: int
    content: EncodedAudio | None


class TarReader:
    """The members of a tar from the header at ``offset`` on. Names are only names: nothing is written anywhere.

    Args:
        place: a file or URL, which may be compressed (offsets are then those in the tar inside). timeout: in seconds,
            for a URL.
    """

    def __init__(self, place: str, offset: int, timeout: float) -> None:
        self.place, self.at = place, offset
        packed = find_codec(place) is not None
        self.stream = (open_decompressed if packed else open_onwards)(place, offset, timeout)
        self.local = None if packed or is_remote(place) else Path(place)
        self.size = os.fstat(self.stream.fileno()).st_size if self.local is not None else 0
        source = getattr(self.stream, "raw", None)
        # whether opening it at a later offset means reading all that lies before
        self.is_read_from_start = packed or (isinstance(source, HttpStream) and not source.serves_parts)

    def iterate_members(self) -> Iterator[Member]:
        """Yield the files that follow.

        Raises:
            BrokenShardError: where the archive is damaged or cut. OSError: when reading it fails.
        """
        with self.stream:
            start, name = self.at, None
            while (info := self.read_header()) is not None:
                if info.type in LONG_NAME or info.type in PAX:
                    name = self.read_long_name(info) or name
                    continue
                # links and folders may state a size, but nothing follows their header
                if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES:
                    content = self.read_content(name or info.name, info.size)
                    if info.isreg():
                        yield Member(name or info.name, start, self.at, content)
                start, name = self.at, None

    def read_header(self) -> tarfile.TarInfo | None:
        """Read the next header; None is the end, which an archive must state: one that stops without it is cut."""
        at = self.at
        if at == 0 and self.local is not None:
            self.refuse_foreign_file()
        data = self.take(RECORD)
        if not data.strip(b"\0"):
            self.check_end(at)
            return None
        try:
            info = tarfile.TarInfo.frombuf(data, "utf-8", ODD_NAMES)
        except tarfile.HeaderError as problem:
            raise BrokenShardError(f"{self.place}: damaged at byte {at} ({problem})") from problem
        if info.size < 0:
            raise BrokenShardError(f"{self.place}: damaged at byte {at} (a size of {info.size})")
        return info

    def refuse_foreign_file(self) -> None:
        """Refuse a local file that is empty, or by its first bytes something else than a tar.

        Raises:
            BrokenShardError: saying what it is.
        """
        foreign = describe_signature(os.pread(self.stream.fileno(), SIGNATURE_BYTES, 0))
        if not self.size or foreign:
            raise BrokenShardError(f"{self.place}: is {foreign or 'empty'}")

    def check_end(self, at: int) -> None:
        """Refuse an end that is none: members behind it would be lost in silence.

        Raises:
            BrokenShardError: where more than zeros follows.
        """
        while rest := self.stream.read(BLOCK):
            if rest.strip(b"\0"):
                raise BrokenShardError(
                    f"{self.place}: damaged at byte {at} (zeros, with more members after them)"
                )

    def read_content(self, name: str, size: int) -> EncodedAudio | None:
        """Read what belongs to a header, or skip it."""
        if self.local is not None and is_clip(name):
            part = FilePart(self.local, self.at, size)
            self.leave(size)
            return part
        if is_clip(name) or size <= LARGEST_TEXT:
            return self.take(size)
        self.leave(size)
        return None

    def read_long_name(self, info: tarfile.TarInfo) -> str | None:
        """Return the name that a GNU or pax header gives to the member behind it."""
        at = self.at
        if info.size > LARGEST_TEXT:
            raise BrokenShardError(f"{self.place}: damaged at byte {at} (a name of {info.size} bytes)")
        content = self.take(info.size)
        try:
            return parse_long_name(info, content)
        except ValueError as problem:
            raise BrokenShardError(f"{self.place}: damaged at byte {at} ({problem})") from problem

    def take(self, size: int) -> bytes:
        """Read ``size`` bytes and the rest of the last record."""
        data = self.stream.read(pad_to_records(size))
        self.at += len(data)
        if len(data) < pad_to_records(size):
            raise BrokenShardError(f"{self.place}: truncated at byte {self.at}", is_cut=True)
        return data[:size]

    def leave(self, size: int) -> None:
        """Skip ``size`` bytes and the rest of the last record."""
        behind = self.at + pad_to_records(size)
        if self.local is None:
            while self.at < behind:
                self.take(min(BLOCK, behind - self.at))
        elif behind > self.size:
            raise BrokenShardError(f"{self.place}: truncated at byte {self.size}", is_cut=True)
        else:
            self.stream.seek(behind)
            self.at = behind


def pad_to_records(size: int) -> int:
    return -(-size // RECORD) * RECORD


def parse_long_name(info: tarfile.TarInfo, content: bytes) -> str | None:
    """Return the name in the content of a GNU or pax header, if there is one.

    Raises:
        ValueError: when the header is damaged.
    """
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode("utf-8", ODD_NAMES)
    while info.type in PAX and content.strip(b"\0"):
        digits, _, rest = content.partition(b" ")
        length = int(digits)
        if not len(digits) + 2 < length <= len(content):
            raise ValueError(f"a pax record of {length} bytes")
        key, _, value = rest[: length - len(digits) - 2].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", ODD_NAMES)
        content = content[length:]
    return None


@lru_cache(maxsize=64)
def list_archive_members(archive: Path) -> Mapping[str, FilePart]:
    """Return where the files of a tar lie, by their names without ``./``: those before the damage, where there is
    some.
    """
    members_by_name: dict[str, FilePart] = {}
    with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(archive, "r:") as tar:
        for member in tar:
            if member.isfile():
                members_by_name[posixpath.normpath(member.name)] = FilePart(
                    archive, member.offset_data, member.size
                )
    return members_by_name


def find_archive_member(archive: Path, member: str) -> FilePart:
    """Return where a file of a tar lies; nothing is unpacked.

    Raises:
        RowError: when there is no such archive or file in it.
    """
    if not archive.is_file():
        raise RowError("missing file", str(archive))
    if find_codec(str(archive)) is not None:
        detail = f"{archive} is compressed, so its files cannot be read one by one; decompress it"
        raise RowError("missing file", detail)
    members, name = list_archive_members(archive), posixpath.normpath(member)
    if name not in members:
        raise RowError("missing file", f"{archive} holds no {member} (or is damaged before it)")
    return members[name]
