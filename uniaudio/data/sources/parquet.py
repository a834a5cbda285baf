"""Parquet files with embedded audio, read by row group."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow
import pyarrow.parquet as pq

from uniaudio.config.file_signatures import SIGNATURE_BYTES, describe_signature
from uniaudio.data.card import DatasetCard
from uniaudio.data.column_names import IDS, simplify_name
from uniaudio.data.field_values import Classes
from uniaudio.data.keep_conditions import KEY
from uniaudio.data.segment import TIME_COLUMNS
from uniaudio.data.sources.audio_columns import explain_missing_audio, make_row
from uniaudio.data.sources.base import (
    UNREAD,
    BrokenShardError,
    Place,
    Row,
    ShardedSource,
    hash_values,
    is_row_in_split,
    read_row_or_error,
)
from uniaudio.data.sources.class_names import (
    collect_classes,
    make_column_namings,
    read_folder_features,
    read_schema_features,
)
from uniaudio.data.sources.file_fingerprints import name_places
from uniaudio.data.sources.http import BLOCK, HttpFile
from uniaudio.data.sources.parquet_values import convert_audio_value, convert_table
from uniaudio.data.sources.paths import is_remote, read_size, shorten_names
from uniaudio.data.sources.split_files import list_split_files
from uniaudio.data.sources.url_files import classify_error, open_in_jumps
from uniaudio.errors import RowError, UserError, read_first_line

AT_ONCE = 32  # rows whose audio is in memory at the same time
# bytes: columns of a remote row group up to this length are fetched in one request
FETCHED_WHOLE = 64 * 2**20


@dataclass(frozen=True)
class Shard:
    """What is read alone: row groups of a file, the first of its rows being row ``start`` of the file.

    Args:
        name: of the file, for the keys of its rows. groups: None for all, known when the file is opened.
        rows: their number, where it is known.
    """

    place: str
    name: str
    groups: range | None = None
    start: int = 0
    damage: str = ""
    rows: int | None = None


class ParquetSource(ShardedSource):
    """One file, a folder, a glob, ``{000..012}`` or URLs; see ``list_split_files`` for which of them are the split.

    A shard is a row group of a local file, or a whole remote one: its footer is only read when its turn comes. The
    columns without audio are read first, so row groups of which nothing is kept cost little.

    Attributes:
        reads_clips: whether the bytes of clips are read, see ``shard_text_rows``.
    """

    reads_clips = True

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.card, self.split = card, split
        places = list_split_files(card, split, (".parquet",), self.left_out)
        self.table = [
            shard
            for place, name in zip(places, shorten_names(places), strict=True)
            for shard in ([Shard(place, name)] if is_remote(place) else list_local_shards(place, name))
        ]
        broken = [shard for shard in self.table if shard.damage]
        if len(broken) == len(self.table):
            raise UserError(f"{card.path}: {broken[0].place} is not a Parquet file ({broken[0].damage})")
        if card.split(split).keep is None and not any(map(is_remote, places)):
            self.size = sum(shard.rows or 0 for shard in self.table)
        self.shards = tuple(
            f"{s.place}:{s.groups.start}" if s.groups is not None else s.place for s in self.table
        )

    @cached_property
    def classes(self) -> Mapping[str, Classes]:
        """The classes of the columns that hold numbers with names, by the first file."""
        what = next(shard for shard in self.table if not shard.damage)
        try:
            with open_in_jumps(what.place, self.card.load.timeout) as stream:
                return collect_classes(self.read_features(what.place, pq.ParquetFile(stream).schema_arrow))
        except (BrokenShardError, pyarrow.ArrowException, OSError):
            return {}  # it says what is wrong with it when its turn comes

    def read_features(self, place: str, schema: pyarrow.Schema) -> dict[str, Any]:
        """Return the features that a file states, or else the files beside it."""
        return read_schema_features(schema.metadata) or (
            {} if is_remote(place) else read_folder_features(Path(place).parent)
        )

    def fingerprint(self, columns: Collection[str]) -> str:
        places = [shard.place for shard in self.table]
        names = name_places(places)  # the folder may be moved
        facts = [(shard.rows, shard.start) for shard in self.table]
        return hash_values([*zip(names, map(read_size, places), facts, strict=True)])

    def list_files(self) -> Sequence[str]:
        return list(dict.fromkeys(shard.place for shard in self.table))

    def shard_text_rows(self, shard: int) -> Iterator[Row | RowError]:
        """Yield the rows of a shard without reading the columns of clips, but for the names that they have in it."""
        light = copy.copy(self)
        light.reads_clips = False
        return (row for row in light.shard_rows(shard) if row is not None)

    def read(self, shard: int, place: Place) -> Iterator[tuple[Row | RowError | None, Place]]:
        what = self.table[shard]
        last = place
        try:
            if what.damage:
                raise BrokenShardError(f"{what.place}: {what.damage}")
            for row, last in self.iterate_rows(what, place.row):
                yield row, last
        except BrokenShardError as problem:
            self.add_estimate(problem, what, last)
            raise
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as problem:
            error = classify_error(problem, what.place)
            if isinstance(error, BrokenShardError):
                self.add_estimate(error, what, last)
            raise error from problem

    def add_estimate(self, problem: BrokenShardError, what: Shard, last: Place) -> None:
        """State the rows that are lost with the rest of a shard, by the footer; of a file without one, by its size."""
        sizes = {shard.place: read_size(shard.place) for shard in self.table}
        rows = sum(shard.rows or 0 for shard in self.table)
        read = sum(sizes[place] or 0 for place in {s.place for s in self.table if s.rows is not None})
        mean = read / rows if rows else 0.0
        unknown = [shard.place for shard in self.table if shard.rows is None]
        if not mean or any(sizes[place] is None for place in unknown):
            return
        problem.lost = (
            what.rows - last.row if what.rows is not None else round((sizes[what.place] or 0) / mean)
        )
        problem.total = rows + sum((sizes[place] or 0) / mean for place in unknown)

    def iterate_rows(self, what: Shard, skipped: int) -> Iterator[tuple[Row | RowError | None, Place]]:
        """Yield the rows of a shard but the first ``skipped``."""
        with open_in_jumps(what.place, self.card.load.timeout) as stream:
            file = pq.ParquetFile(stream)
            before = 0
            for group in what.groups if what.groups is not None else range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                first = max(0, skipped - before)
                if first < count:
                    rows = self.iterate_group(
                        what, stream, file, group, what.start + before, range(first, count)
                    )
                    for number, row in enumerate(rows, before + first + 1):
                        yield row, Place(number)
                before += count

    def iterate_group(
        self, what: Shard, stream: BinaryIO, file: pq.ParquetFile, group: int, start: int, wanted: range
    ) -> Iterator[Row | RowError | None]:
        """Yield the wanted rows of a row group, whose first row is row ``start`` of the file."""
        schema = file.schema_arrow
        self.check_columns(what, schema.names)
        light, heavy = self.choose_columns(schema)
        if not self.reads_clips:  # of a clip of the Hub's kind only its name, of others nothing
            heavy = [f"{name}.path" for name in heavy if self.is_clip(schema.field(name))]
        namings = make_column_namings(self.read_features(what.place, schema))
        are_all_kept = self.card.split(self.split).keep is None
        keep_columns(stream, file.metadata.row_group(group), [*light, *(heavy if are_all_kept else ())])
        columns = (
            convert_table(file.read_row_group(group, columns=light), namings)
            if light
            else [{} for _ in range(wanted.stop)]
        )
        keys = [f"{what.name}/{start + i}" for i in range(len(columns))]
        kept = [
            i in wanted and self.is_kept(row, key)
            for i, (row, key) in enumerate(zip(columns, keys, strict=True))
        ]
        if any(kept) and not are_all_kept:
            keep_columns(stream, file.metadata.row_group(group), heavy)
        clips = enumerate(iterate_clip_columns(file, group, heavy))
        for i in wanted:
            if not kept[i]:
                yield None
                continue
            of_row = next(clip for number, clip in clips if number == i) if heavy else None
            make = partial(self.build_row, keys[i], columns[i], of_row, Path(what.place).parent)
            yield read_row_or_error(make, keys[i])

    def check_columns(self, what: Shard, names: Sequence[str]) -> None:
        """Refuse a file without the columns that the card says where clips are and which rows to keep by.

        Raises:
            UserError: naming the columns there are.
        """
        for name in self.card.stored_audio:
            if name not in names:
                raise UserError(f"{self.card.path}: {explain_missing_audio(what.place, name, names)}")
        keep = self.card.split(self.split).keep
        if keep is not None and (absent := sorted(keep.names - {*names, KEY})):
            raise UserError(
                f"{keep.where}: the rows have no column '{absent[0]}'; they have {', '.join(sorted(names))}"
            )

    def choose_columns(self, schema: pyarrow.Schema) -> tuple[list[str], list[str]]:
        """Return the columns that are read: those without and those with clips.

        Where one is missing all are read, so that the message about it can name them.
        """
        used = self.card.list_columns_to_read(self.split, set(schema.names))
        made_of = {name for text in self.card.audio_texts.values() for name in text.names}
        light, heavy = [], []
        for field in schema:
            if field.name in self.card.stored_audio:
                heavy.append(field.name)
            elif self.is_clip(field):
                heavy += [field.name] if field.name in made_of else []
            elif used is None or field.name in used or is_time(field) or self.is_id(field):
                light.append(field.name)
        return light, heavy

    def is_id(self, field: pyarrow.Field) -> bool:
        """Return whether a column names rows, where rows are only read for what they say: some may come twice."""
        return not self.reads_clips and simplify_name(field.name) in IDS

    def is_kept(self, columns: Mapping[str, Any], key: str) -> bool:
        """Return whether a row belongs to the split, or it cannot be told: ``build_row`` then says so."""
        try:
            return is_row_in_split(self.card, columns, self.split, key)
        except RowError:
            return True

    def is_clip(self, field: pyarrow.Field) -> bool:
        """Return whether a column holds clips as the Hub has them; those that the card does not name are never read."""
        return pyarrow.types.is_struct(field.type) and {"bytes", "path"} <= {part.name for part in field.type}

    def build_row(
        self, key: str, columns: Mapping[str, Any], clips: pyarrow.RecordBatch | None, folder: Path
    ) -> Row | None:
        """Put a row together; None where it does not belong to the split.

        Args:
            columns: without clips. clips: the columns with clips, of this row. folder: that paths are relative to.

        Raises:
            RowError: when it cannot be used.
        """
        if not is_row_in_split(self.card, columns, self.split, key):
            return None
        stored = dict(columns)
        if clips is not None:
            stored |= {name: convert_audio_value(clips.column(name), 0) for name in clips.schema.names}
        if not self.reads_clips:
            stored |= {name: UNREAD for name in self.card.audio if is_nameless(stored.get(name))}
        return make_row(self.card, key, columns, stored, folder)


def iterate_clip_columns(file: pq.ParquetFile, group: int, names: list[str]) -> Iterator[pyarrow.RecordBatch]:
    """Yield the named columns of a row group row by row, each as a batch of one row; some are read ahead."""
    for batch in file.iter_batches(AT_ONCE, row_groups=[group], columns=names):
        for i in range(len(batch)):
            yield batch.slice(i, 1)


def keep_columns(stream: BinaryIO, group: Any, names: Sequence[str]) -> None:
    """Fetch the columns of a row group of a remote file in one request, where they lie side by side.

    Args:
        group: its metadata.
    """
    raw = getattr(stream, "raw", None)
    if not isinstance(raw, HttpFile):
        return
    chunks = [group.column(i) for i in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in names]
    starts = [
        min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
        for chunk in chunks
    ]
    lengths = [chunk.total_compressed_size for chunk in chunks]
    if not chunks:
        return
    first, end = min(starts), max(start + length for start, length in zip(starts, lengths, strict=True))
    if end - first <= min(FETCHED_WHOLE, 2 * sum(lengths)) and raw.size > BLOCK:
        raw.keep(first, end - 1)


def is_nameless(clip: Any) -> bool:
    """Return whether a clip whose bytes are not read has no name either."""
    return not (clip.get("path") if isinstance(clip, Mapping) else clip)


def is_time(field: pyarrow.Field) -> bool:
    """Return whether a column may hold times of segments; that a card makes no use of them is told."""
    return field.name in TIME_COLUMNS and (
        pyarrow.types.is_integer(field.type) or pyarrow.types.is_floating(field.type)
    )


def describe_damage(place: str, problem: Exception) -> str:
    """Return why a local file cannot be read: what it is instead, where its first bytes say it."""
    foreign = ""
    with suppress(OSError), Path(place).open("rb") as stream:
        foreign = describe_signature(stream.read(SIGNATURE_BYTES))
    return f"it is {foreign}" if foreign else read_first_line(problem)


def list_local_shards(place: str, name: str) -> list[Shard]:
    """Return the row groups of a local file; a damaged file is one shard that says so."""
    try:
        metadata = pq.read_metadata(place)
    except (OSError, pyarrow.ArrowException) as problem:
        return [Shard(place, name, damage=describe_damage(place, problem))]
    shards, start = [], 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        shards.append(Shard(place, name, range(group, group + 1), start, rows=rows))
        start += rows
    return shards or [Shard(place, name, range(0), rows=0)]
