"""WebDataset archives: tars in which the files of a sample follow one another under one name."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import splitext
from typing import Any

from uniaudio.config.text_files import decode_text
from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.audio_columns import apply_segment, parse_seconds
from uniaudio.data.sources.base import (
    AudioRef,
    BrokenShardError,
    Place,
    Row,
    ShardedSource,
    hash_values,
    is_row_in_split,
    read_row_or_error,
)
from uniaudio.data.sources.compressed import PausedReaders
from uniaudio.data.sources.file_fingerprints import name_places
from uniaudio.data.sources.folder_walk import is_clip
from uniaudio.data.sources.paths import TARS, find_codec, read_size, shorten_names
from uniaudio.data.sources.split_files import list_split_files
from uniaudio.data.sources.tar import RECORD, Member, TarReader
from uniaudio.errors import RowError

NAME = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # key and extension, as the format defines them

PAUSED = PausedReaders[Member]()  # of tars that can only be read from their beginning


@dataclass(frozen=True)
class Sample:
    """The members that share a key; ``again`` when the sample before has it too. ``place`` is where the next begins."""

    key: str
    members: list[Member]
    again: bool
    place: int


class WebDatasetSource(ShardedSource):
    """Samples of one or more tars, local or by URL; see ``list_split_files`` for which of them are the split.

    The members of a sample share the name up to the first dot. Columns: ``__key__``, the keys of ``.json``, ``text``
    for ``.txt``, and for any other text its content under the extension. One audio member is the clip, or as many as
    the card has audio columns, in their order. Local clips stay in the tar until they are decoded, unless the tar is
    compressed (``.tar.gz``, ``.tar.bz2``, ``.tar.zst``).
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.card, self.split = card, split
        self.shards = tuple(list_split_files(card, split, TARS, self.left_out))
        self.names = shorten_names(self.shards)

    def fingerprint(self, columns: Collection[str]) -> str:
        return hash_values([*zip(name_places(self.shards), map(read_size, self.shards), strict=True)])

    def list_files(self) -> Sequence[str]:
        return self.shards

    def read(self, shard: int, place: Place) -> Iterator[tuple[Row | RowError | None, Place]]:
        last = place
        try:
            for number, sample in enumerate(self.samples(shard, place.offset), place.row + 1):
                name = f"{self.names[shard]}/{sample.key}"
                row = read_row_or_error(functools.partial(self.build_row, name, sample), name)
                last = Place(number, sample.place)
                yield row, last
        except BrokenShardError as problem:
            self.add_estimate(problem, shard, last)
            raise

    def add_estimate(self, problem: BrokenShardError, shard: int, last: Place) -> None:
        """Estimate the rows behind a damage: bytes left behind over the mean size of the rows before it.

        A cut archive does not say how long it was. It is taken to have been as long as the longest one; where it is
        the longest itself, as much is taken to lie behind the cut as before it.
        """
        sizes = [read_size(place) for place in self.shards]
        known = [size for size in sizes if size is not None]
        size = sizes[shard]
        if not last.row or size is None or len(known) < len(sizes) or any(map(find_codec, self.shards)):
            return  # of a compressed tar, the file's size does not say what it holds
        mean = last.offset / last.row
        end = max(known) if problem.is_cut else size
        left = end - last.offset
        if problem.is_cut and end < size + mean:
            problem.lost = last.row
            problem.total = (last.row + problem.lost) * sum(known) / size  # and the others may be as this one
        else:
            problem.lost = max(1, round(left / mean))
            problem.total = (sum(known) - size) / mean + last.row + problem.lost

    def samples(self, shard: int, offset: int) -> Iterator[Sample]:
        """Yield the samples from an offset on.

        Headers lie at multiples of 512 bytes. One more stands for a sample with the key of the one before it, so
        that reading from there gives what reading all gives.
        """
        again = offset % RECORD == 1
        start = offset - again
        key, group = "", list[Member]()
        place = self.shards[shard]
        first: tuple[Member, ...] = ()
        if (kept := PAUSED.take(place, start)) is not None:
            first, rest, is_worth_keeping = kept[:1], kept[1], True
        else:
            reader = TarReader(place, start, self.card.load.timeout)
            rest, is_worth_keeping = reader.iterate_members(), reader.is_read_from_start
        for member in itertools.chain(first, rest):
            named = NAME.fullmatch(member.name)
            if named is None:
                continue  # a README, or what some systems leave in archives: no part of any sample
            same = named[1] == key
            if group and (not same or member.name in {other.name for other in group}):
                try:
                    yield Sample(key, group, again, member.start + same)
                except GeneratorExit:
                    if is_worth_keeping:
                        PAUSED.put(place, member.start, member, rest)
                    raise
                group, again = [], same
            key = named[1]
            group.append(member)
        if group:
            yield Sample(key, group, again, group[-1].end)

    def name_columns(self, parsed: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a sample from its members by their extensions: texts, and the object of ``.json``."""
        columns = {
            "text" if name == "txt" else name: value for name, value in parsed.items() if name != "json"
        }
        return {**columns, **parsed.get("json", {})}

    def build_row(self, name: str, sample: Sample) -> Row | None:
        """Put the members of a sample together; None where it does not belong to the split.

        Raises:
            RowError: when it cannot be used.
        """
        if sample.again:
            raise RowError("duplicate key", name)
        parsed: dict[str, Any] = {}
        clips = []
        for member in sample.members:
            extension = extension_of(member.name)
            if is_clip(member.name):
                clips.append(member)
            elif extension == "json":
                try:
                    parsed[extension] = parse_json_object(member.content)
                except (ValueError, RecursionError) as problem:
                    raise RowError("broken metadata", f"{name}: {member.name} ({problem})") from problem
            elif (text := decode_member(member)) is not None:
                parsed[extension] = text
        columns = {**self.name_columns(parsed), "__key__": sample.key}
        keep = self.card.split(self.split).keep
        absent = sorted(keep.names - set(columns)) if keep is not None else []
        if absent:  # of one sample, as where its .json is missing: no reason to end a run
            raise RowError("missing column", f"{name}: splits.{self.split}.keep needs '{absent[0]}'")
        if not is_row_in_split(self.card, columns, self.split, name):
            return None
        if len(clips) != len(self.card.audio):
            if not clips:
                raise RowError("missing audio", f"{name}: no audio")
            rename = "the name of a sample ends at its first dot, so rename those with dots in it"
            raise RowError("too many clips", f"{name}: {len(clips)} audio files; {rename}")
        length = parse_seconds(columns.get("duration")) if len(clips) == 1 else None
        refs = (
            AudioRef(clip.content, name, length, suffix=splitext(clip.name)[1])
            for clip in clips
            if clip.content is not None
        )
        return Row(name, columns, tuple(apply_segment(ref, self.card, columns) for ref in refs))


def extension_of(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def decode_member(member: Member) -> str | None:
    """Return a text member's content; None for anything else, such as a picture or an array."""
    try:
        return decode_text(member.content).strip() if isinstance(member.content, bytes) else None
    except UnicodeDecodeError:
        return None


def parse_json_object(content: object) -> dict[str, Any]:
    """Return the keys of the JSON beside a clip.

    Raises:
        ValueError: when it holds no object.
    """
    parsed = json.loads(content) if isinstance(content, bytes) else None
    if not isinstance(parsed, dict):
        raise ValueError("must be one object")
    return parsed
