"""Parquet files with embedded audio, read by row group."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq

from uniaudio.data.card import DatasetCard
from uniaudio.data.source import Row, audio_refs
from uniaudio.errors import UserError


class ParquetSource:
    """One file, or a folder of them; files that begin with the stored split's name and '-' are that split.

    Only the columns without audio are read when the source opens; a row's audio comes with its row group, and the
    last row group stays at hand.
    """

    size: int | None

    def __init__(self, card: DatasetCard, split: str) -> None:
        self.card = card
        self.files = parquet_files(card, split)
        self.folder = self.files[0].parent
        self.groups: list[tuple[Path, int]] = []
        sizes: list[int] = []
        kept: list[int] = []
        for file in self.files:
            try:
                table = pq.ParquetFile(file)
            except (OSError, pyarrow.ArrowInvalid) as problem:
                raise UserError(f"{card.path}: {file} is no parquet file ({problem})") from problem
            light = [name for name in table.schema_arrow.names if name not in card.audio]
            for group in range(table.num_row_groups):
                start = sum(sizes)
                rows = table.read_row_group(group, columns=light).to_pylist()
                kept += [start + i for i, row in enumerate(rows) if card.keeps(row, split)]
                self.groups.append((file, group))
                sizes.append(table.metadata.row_group(group).num_rows)
        self.starts = [0, *accumulate(sizes)]
        self.kept = kept
        self.size = len(kept)
        self.at_hand: tuple[int, list[dict[str, Any]]] = (-1, [])

    def row(self, index: int) -> Row:
        position = self.kept[index]
        group = bisect_right(self.starts, position) - 1
        if self.at_hand[0] != group:
            file, number = self.groups[group]
            self.at_hand = (group, pq.ParquetFile(file).read_row_group(number).to_pylist())
        columns = self.at_hand[1][position - self.starts[group]]
        light = {name: value for name, value in columns.items() if name not in self.card.audio}
        return Row(str(position), light, audio_refs(columns, self.card.audio, self.folder, str(position)))

    def stream(self, start: int) -> Iterator[Row]:
        return (self.row(index) for index in range(start, len(self.kept)))


def parquet_files(card: DatasetCard, split: str) -> list[Path]:
    """Return the files of a split, sorted."""
    path = Path(card.load.location)
    if path.is_file():
        return [path]
    files = sorted(path.rglob("*.parquet"))
    if not files:
        raise UserError(f"{card.path}: load.parquet: there is no parquet file at {path}")
    name = card.split(split).name
    return [file for file in files if file.name.startswith(f"{name}-") or file.stem == name] or files
