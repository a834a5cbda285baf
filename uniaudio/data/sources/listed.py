"""Sources whose rows fit in memory without their audio: manifests and folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.source import Row, audio_refs


class ListedSource:
    """Rows as plain mappings, with audio paths relative to ``folder``."""

    size: int | None

    def __init__(
        self, card: DatasetCard, split: str, rows: list[tuple[str, dict[str, Any]]], folder: Path
    ) -> None:
        self.card = card
        self.folder = folder
        self.rows: list[tuple[str, Mapping[str, Any]]] = [item for item in rows if card.keeps(item[1], split)]
        self.size = len(self.rows)

    def row(self, index: int) -> Row:
        key, columns = self.rows[index]
        return Row(key, columns, audio_refs(columns, self.card.audio, self.folder, key))

    def stream(self, start: int) -> Iterator[Row]:
        return (self.row(index) for index in range(start, len(self.rows)))
