"""WebDataset archives: tars in which the files of a sample follow one another under one name."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from uniaudio.data.audio import Encoded, FilePart
from uniaudio.data.card import DatasetCard
from uniaudio.data.source import AudioRef, BrokenShardError, Place, Row, ShardedSource
from uniaudio.data.sources.audiofolder import SUFFIXES
from uniaudio.data.sources.remote import expand_places, is_remote, open_onwards
from uniaudio.errors import RowError

RECORD = 512  # bytes: tars are made of them
LONG_NAME = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
LARGEST_TEXT = 1 << 24  # bytes of a member that is no audio; a header that states more is damaged


@dataclass(frozen=True)
class Member:
    """A file in a tar: its name, where its first header begins, and its content (audio on disk is not read)."""

    name: str
    start: int
    end: int
    content: Encoded


class WebDatasetSource(ShardedSource):
    """Samples of one or more tars, local or by URL; ``{000..012}``, globs and folders name several.

    The members of a sample share the name up to the first dot. Columns: ``__key__``, the keys of ``.json``, ``text``
    for ``.txt``, and for any other member its text under the extension. The one audio member is the clip.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.card, self.split = card, split
        where = f"{card.path}: load.webdataset"
        self.places = expand_places(stored(card, split), ".tar", where)
        self.shards = tuple(self.places)
        self.timeout = card.load.timeout

    def read(self, shard: int, place: Place) -> Iterator[tuple[Row | RowError | None, Place]]:
        name = Path(self.places[shard]).stem
        for number, (key, members, end) in enumerate(self.samples(shard, place.offset), place.row):
            yield self.row_of(f"{name}/{key}", key, members), Place(number + 1, end)

    def samples(self, shard: int, offset: int) -> Iterator[tuple[str, list[Member], int]]:
        """Yield (key, members, where the next sample begins)."""
        key, group = "", list[Member]()
        for member in read_members(self.places[shard], offset, self.timeout):
            folder, slash, base = member.name.rpartition("/")
            stem = folder + slash + base.partition(".")[0]
            if group and stem != key:
                yield key, group, member.start
                group = []
            key = stem
            group.append(member)
        if group:
            yield key, group, group[-1].end

    def row_of(self, name: str, key: str, members: list[Member]) -> Row | RowError | None:
        """Put the members of a sample together."""
        if len({member.name for member in members}) < len(members):
            return RowError("duplicate key", name)
        columns: dict[str, Any] = {"__key__": key}
        clips = []
        for member in members:
            extension = member.name.rpartition("/")[2].partition(".")[2].lower()
            if f".{extension.rpartition('.')[2]}" in SUFFIXES:
                clips.append(member)
                continue
            assert isinstance(member.content, bytes)
            try:
                text = member.content.decode("utf-8")
                if extension == "json":
                    columns |= json.loads(text)
                else:
                    columns["text" if extension == "txt" else extension] = text.strip()
            except (ValueError, TypeError) as problem:
                return RowError("broken metadata", f"{name}: {member.name} ({problem})")
        if not self.card.keeps(columns, self.split):
            return None
        if len(clips) != len(self.card.audio):
            found = "no audio" if not clips else f"{len(clips)} audio files"
            return RowError("missing audio" if not clips else "too many clips", f"{name}: {found}")
        seconds = columns.get("duration") if len(clips) == 1 else None
        length = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None
        return Row(name, columns, tuple(AudioRef(clip.content, name, length) for clip in clips))


def stored(card: DatasetCard, split: str) -> str | tuple[str, ...]:
    """Return the card's places with ``{split}`` filled in by the stored split's name."""
    places = card.load.places
    name = card.split(split).name
    return tuple(place.replace("{split}", name) for place in places)


def read_members(place: str, offset: int, timeout: float) -> Iterator[Member]:
    """Yield the files of a tar from the header at ``offset`` on.

    Read by hand, for ``tarfile`` can neither begin in the middle nor say where a member's first header lies.

    Raises:
        BrokenShardError: where the archive is damaged or cut. OSError: when reading it fails.
    """
    local = None if is_remote(place) else Path(place)
    with open_onwards(place, offset, timeout) as stream:
        at = start = offset
        name = None
        while True:
            header = take(stream, RECORD, place, at, may_end=at == start)
            if not header.strip(b"\0"):
                return  # the records of zeros behind the last member, or the end of a tar that lacks them
            try:
                info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            except tarfile.HeaderError as problem:
                raise BrokenShardError(f"{place}: damaged at byte {at} ({problem})") from problem
            at += RECORD
            padded = -(-info.size // RECORD) * RECORD
            if info.type in LONG_NAME or info.type in PAX:
                content = take(stream, padded, place, at)[: info.size]
                name = long_name(info, content) or name
            elif info.isreg():
                member = name or info.name
                audio = Path(member).suffix.lower() in SUFFIXES
                if not audio and info.size > LARGEST_TEXT:
                    raise BrokenShardError(f"{place}: {member} at byte {at} states {info.size} bytes of text")
                if audio and local is not None:
                    leave(stream, padded, local, at)
                    yield Member(member, start, at + padded, FilePart(local, at, info.size))
                else:
                    content = take(stream, padded, place, at)[: info.size]
                    yield Member(member, start, at + padded, content)
            else:
                take(stream, padded, place, at)
            at += padded
            if info.type not in LONG_NAME and info.type not in PAX:
                start, name = at, None


def long_name(info: tarfile.TarInfo, content: bytes) -> str | None:
    """Return the name that a GNU or pax header gives to the member behind it."""
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return content.rstrip(b"\0").decode("utf-8", "surrogateescape")
    if info.type in PAX:
        while content.strip(b"\0"):
            length, _, rest = content.partition(b" ")
            key, _, value = rest[: int(length) - len(length) - 2].partition(b"=")
            if key == b"path":
                return value.decode("utf-8", "surrogateescape")
            content = content[int(length) :]
    return None


def take(stream: BinaryIO, count: int, place: str, at: int, may_end: bool = False) -> bytes:
    """Read exactly ``count`` bytes."""
    data = b""
    while len(data) < count:
        more = stream.read(count - len(data))
        if not more:
            if may_end and not data:
                return b""
            raise BrokenShardError(f"{place}: cut at byte {at + len(data)}")
        data += more
    return data


def leave(stream: BinaryIO, count: int, path: Path, at: int) -> None:
    """Jump over a member of a local tar; notice when the file ends inside it."""
    stream.seek(0, 2)
    if stream.tell() < at + count:
        raise BrokenShardError(f"{path}: cut at byte {stream.tell()}")
    stream.seek(at + count)
