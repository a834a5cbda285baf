"""Sources whose rows fit in memory without their audio: manifests and folders."""

from __future__ import annotations

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
        kept = [(key, columns) for key, columns in rows if card.keeps(columns, split)]
        names = unique(key for key, _ in kept)
        self.listed = [(name, columns) for name, (_, columns) in zip(names, kept, strict=True)]
        self.size = len(self.listed)

    def row(self, index: int) -> Row:
        key, columns = self.listed[index]
        return Row(key, columns, audio_refs(columns, self.card.audio, self.folder, key))


def unique(keys: Iterable[str]) -> list[str]:
    """Return the keys, with ``#2``, ``#3`` ... behind those that came before, whatever the keys themselves end with."""
    times: dict[str, int] = {}
    found = []
    for key in keys:
        name = key
        while name in times:
            times[key] += 1
            name = f"{key}#{times[key]}"
        times[name] = 1
        found.append(name)
    return found
