"""Parquet files with embedded audio, read by row group."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq

from uniaudio.data.card import DatasetCard
from uniaudio.data.source import BrokenShardError, Place, Row, ShardedSource, audio_refs
from uniaudio.data.sources.remote import expand_places, is_remote, open_in_jumps
from uniaudio.errors import RowError, UserError

AT_ONCE = 32  # rows whose audio is in memory at the same time


@dataclass(frozen=True)
class Shard:
    """What is read alone: row groups of a file, the first of its rows being row ``start`` of the file."""

    place: str
    groups: range | None  # None: all, known when the file is opened
    start: int = 0
    damage: str = ""


class ParquetSource(ShardedSource):
    """One file, a folder, a glob, ``{000..012}`` or URLs; files that begin with the stored split's name and ``-`` are
    that split.

    A shard is a row group of a local file, or a whole remote one: its footer is only read when its turn comes. The
    columns without audio are read first, so row groups of which nothing is kept cost little.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.card, self.split = card, split
        places = expand_places(card.load.places, ".parquet", f"{card.path}: load.parquet")
        name = card.split(split).name
        named = [p for p in places if Path(p).name.startswith(f"{name}-") or Path(p).stem == name]
        self.table: list[Shard] = []
        rows = 0
        for place in named or places:
            shards, count = ([Shard(place, None)], 0) if is_remote(place) else local_shards(place)
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
        except (pyarrow.ArrowException, OSError) as problem:
            # arrow's own errors are plain OSErrors or ArrowExceptions; those of a connection are of finer classes
            if isinstance(problem, OSError) and type(problem) is not OSError and is_remote(what.place):
                raise
            raise BrokenShardError(f"{what.place}: {str(problem).splitlines()[0]}") from problem

    def rows_of(self, what: Shard, skipped: int) -> Iterator[tuple[Row | RowError | None, Place]]:
        """Yield the rows of a shard but the first ``skipped``."""
        stem, folder = Path(what.place).stem, Path(what.place).parent
        with open_in_jumps(what.place, self.card.load.timeout) as stream:
            file = pq.ParquetFile(stream)
            names = file.schema_arrow.names
            light = [name for name in names if name not in self.card.audio]
            heavy = [name for name in self.card.audio if name in names]
            before = 0
            for group in what.groups if what.groups is not None else range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if before + count > skipped:
                    columns = file.read_row_group(group, columns=light).to_pylist() if light else [{}] * count
                    kept = [self.card.keeps(row, self.split) for row in columns]
                    clips = self.clips(file, group, heavy, kept)
                    for i in range(max(0, skipped - before), count):
                        number = before + i + 1
                        yield (
                            self.row_of(f"{stem}/{what.start + number - 1}", columns[i], clips(i), folder)
                            if kept[i]
                            else None,
                            Place(number),
                        )
                before += count

    def clips(self, file: pq.ParquetFile, group: int, heavy: list[str], kept: list[bool]) -> Any:
        """Return a function from the row of a group to its audio columns; it reads on as far as it must."""
        if not any(kept) or not heavy:
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
    ) -> Row | RowError:
        try:
            return Row(key, columns, audio_refs({**columns, **clips}, self.card.audio, folder, key))
        except RowError as problem:
            return problem


def plain(column: pyarrow.Array, i: int) -> Any:
    """Return a value of an audio column; bytes stay where Arrow has them, for copies cost more than reading."""
    if pyarrow.types.is_struct(column.type):
        return {field.name: plain(column.field(field.name), i) for field in column.type}
    value = column[i]
    if pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
        return memoryview(value.as_buffer()) if value.is_valid else None
    return value.as_py()


def local_shards(place: str) -> tuple[list[Shard], int]:
    """Return the row groups of a local file and its number of rows; a damaged file is one shard that says so."""
    try:
        metadata = pq.read_metadata(place)
    except (OSError, pyarrow.ArrowException) as problem:
        return [Shard(place, None, damage=str(problem).splitlines()[0])], 0
    shards, start = [], 0
    for group in range(metadata.num_row_groups):
        shards.append(Shard(place, range(group, group + 1), start))
        start += metadata.row_group(group).num_rows
    return shards or [Shard(place, range(0))], start
