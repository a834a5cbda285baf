"""Sources whose rows fit in memory without their audio: manifests and folders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.source import IndexedSource, Row, audio_refs


class ListedSource(IndexedSource):
    """Rows as plain mappings, with audio paths relative to ``folder``.

    Args:
        rows: (key, columns); a key that comes again gets ``#2``, ``#3`` and so on behind it.
    """

    def __init__(
        self, card: DatasetCard, split: str, rows: Iterable[tuple[str, Mapping[str, Any]]], folder: Path
    ) -> None:
        self.card = card
        self.folder = folder
        times: Counter[str] = Counter()
        self.listed: list[tuple[str, Mapping[str, Any]]] = []
        for key, columns in rows:
            if card.keeps(columns, split):
                times[key] += 1
                self.listed.append((key if times[key] == 1 else f"{key}#{times[key]}", columns))
        self.size = len(self.listed)

    def row(self, index: int) -> Row:
        key, columns = self.listed[index]
        return Row(key, columns, audio_refs(columns, self.card.audio, self.folder, key))
