"""Parquet files with embedded audio, read by row group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq

from uniaudio.data.card import DatasetCard
from uniaudio.data.source import (
    BrokenShardError,
    Place,
    Row,
    ShardedSource,
    audio_refs,
    keeps_row,
    no_audio_column,
    row_or_error,
)
from uniaudio.data.sources.places import files_of_split, is_remote, short_names
from uniaudio.data.sources.remote import judged, open_in_jumps
from uniaudio.errors import RowError, UserError

AT_ONCE = 32  # rows whose audio is in memory at the same time


@dataclass(frozen=True)
class Shard:
    """What is read alone: row groups of a file, the first of its rows being row ``start`` of the file.

    Args:
        name: of the file, for the keys of its rows. groups: None for all, known when the file is opened.
    """

    place: str
    name: str
    groups: range | None = None
    start: int = 0
    damage: str = ""


class ParquetSource(ShardedSource):
    """One file, a folder, a glob, ``{000..012}`` or URLs; see ``files_of_split`` for which of them are the split.

    A shard is a row group of a local file, or a whole remote one: its footer is only read when its turn comes. The
    columns without audio are read first, so row groups of which nothing is kept cost little.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.card, self.split = card, split
        places = files_of_split(card, split, ".parquet")
        self.table: list[Shard] = []
        rows = 0
        for place, name in zip(places, short_names(places), strict=True):
            shards, count = ([Shard(place, name)], 0) if is_remote(place) else local_shards(place, name)
            self.table += shards
            rows += count
        broken = [shard for shard in self.table if shard.damage]
        if len(broken) == len(self.table):
            raise UserError(f"{card.path}: {broken[0].place} is no parquet file ({broken[0].damage})")
        all_local = not any(is_remote(shard.place) for shard in self.table)
        self.size = rows if all_local and card.split(split).keep is None else None
        self.shards = tuple(
            f"{s.place}:{s.groups.start}" if s.groups is not None else s.place for s in self.table
        )

    def read(self, shard: int, place: Place) -> Iterator[tuple[Row | RowError | None, Place]]:
        what = self.table[shard]
        if what.damage:
            raise BrokenShardError(f"{what.place}: {what.damage}")
        try:
            yield from self.rows_of(what, place.row)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as problem:
            raise judged(problem, what.place) from problem

    def rows_of(self, what: Shard, skipped: int) -> Iterator[tuple[Row | RowError | None, Place]]:
        """Yield the rows of a shard but the first ``skipped``."""
        with open_in_jumps(what.place, self.card.load.timeout) as stream:
            file = pq.ParquetFile(stream)
            before = 0
            for group in what.groups if what.groups is not None else range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                first = max(0, skipped - before)
                if first < count:
                    rows = self.rows_of_group(what, file, group, what.start + before, range(first, count))
                    for number, row in enumerate(rows, before + first + 1):
                        yield row, Place(number)
                before += count

    def rows_of_group(
        self, what: Shard, file: pq.ParquetFile, group: int, start: int, wanted: range
    ) -> Iterator[Row | RowError | None]:
        """Yield the wanted rows of a row group, whose first row is row ``start`` of the file."""
        for name in self.card.audio:
            if name not in file.schema_arrow.names:
                raise UserError(
                    f"{self.card.path}: {no_audio_column(what.place, name, file.schema_arrow.names)}"
                )
        light = [field.name for field in file.schema_arrow if not self.is_clip(field)]
        heavy = [name for name in self.card.audio if name in file.schema_arrow.names]
        columns = (
            file.read_row_group(group, columns=light).to_pylist()
            if light
            else [{} for _ in range(wanted.stop)]
        )
        kept = [i in wanted and self.keeps(row) for i, row in enumerate(columns)]
        clips = self.clips(file, group, heavy if any(kept) else [])
        for i in wanted:
            key = f"{what.name}/{start + i}"
            yield self.row_of(key, columns[i], clips(i), Path(what.place).parent) if kept[i] else None

    def keeps(self, columns: Mapping[str, Any]) -> bool:
        """Return whether a row belongs to the split, or it cannot be told: ``row_of`` then says so."""
        try:
            return keeps_row(self.card, columns, self.split)
        except RowError:
            return True

    def is_clip(self, field: pyarrow.Field) -> bool:
        """Return whether a column holds clips; those that the card does not name are never read."""
        return field.name in self.card.audio or (
            pyarrow.types.is_struct(field.type) and {"bytes", "path"} <= {part.name for part in field.type}
        )

    def clips(self, file: pq.ParquetFile, group: int, heavy: list[str]) -> Callable[[int], Mapping[str, Any]]:
        """Return a function from the row of a group to its audio columns; it reads on as far as it must."""
        if not heavy:
            return lambda i: {}
        batches = file.iter_batches(AT_ONCE, row_groups=[group], columns=heavy)
        at_hand: list[Any] = [0, next(batches)]

        def audio(i: int) -> Mapping[str, Any]:
            while i >= at_hand[0] + len(at_hand[1]):
                at_hand[0] += len(at_hand[1])
                at_hand[1] = next(batches)
            return {name: plain(at_hand[1].column(name), i - at_hand[0]) for name in heavy}

        return audio

    def row_of(
        self, key: str, columns: Mapping[str, Any], clips: Mapping[str, Any], folder: Path
    ) -> Row | RowError | None:
        def make() -> Row | None:
            if not keeps_row(self.card, columns, self.split):
                return None
            return Row(key, columns, audio_refs({**columns, **clips}, self.card, folder, key))

        return row_or_error(make, key)


def plain(column: pyarrow.Array, i: int) -> Any:
    """Return a value of an audio column; bytes stay where Arrow has them, for copies cost more than reading."""
    if pyarrow.types.is_struct(column.type):
        return {field.name: plain(column.field(field.name), i) for field in column.type}
    value = column[i]
    if pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
        return memoryview(value.as_buffer()) if value.is_valid else None
    return value.as_py()


def local_shards(place: str, name: str) -> tuple[list[Shard], int]:
    """Return the row groups of a local file and its number of rows; a damaged file is one shard that says so."""
    try:
        metadata = pq.read_metadata(place)
    except (OSError, pyarrow.ArrowException) as problem:
        return [Shard(place, name, damage=str(problem).splitlines()[0])], 0
    shards, start = [], 0
    for group in range(metadata.num_row_groups):
        shards.append(Shard(place, name, range(group, group + 1), start))
        start += metadata.row_group(group).num_rows
    return shards or [Shard(place, name, range(0))], start
