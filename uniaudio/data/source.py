"""Rows of one split: by index where the source knows them, else as a stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from uniaudio.data.audio import Encoded, probe_seconds
from uniaudio.data.card import DatasetCard
from uniaudio.errors import RowError, UserError


@dataclass(frozen=True)
class AudioRef:
    """A clip that is not decoded yet: a path or encoded bytes, and its length where the row states it."""

    source: Encoded
    name: str
    seconds: float | None = None

    def known_seconds(self) -> float:
        """Return the length in seconds, from the row or from the audio header.

        Raises:
            RowError: when the header cannot be read.
        """
        return self.seconds if self.seconds is not None else probe_seconds(self.source, self.name)


@dataclass(frozen=True)
class Row:
    """One row: ``key`` names it within its split; ``columns`` are plain values; one ``AudioRef`` per clip."""

    key: str
    columns: Mapping[str, Any]
    audio: tuple[AudioRef, ...]


class Source(Protocol):
    """The rows of one split.

    Attributes:
        size: number of rows, or None for a stream of unknown length.
    """

    size: int | None

    def row(self, index: int) -> Row:
        """Return a row by its index (indexed sources only)."""

    def stream(self, start: int) -> Iterator[Row]:
        """Yield the rows in order from ``start`` on."""


def audio_ref(value: Any, row: Mapping[str, Any], folder: Path, name: str) -> AudioRef:
    """Understand an audio column: a path, bytes, or the Hub's ``{"bytes": ..., "path": ...}``.

    Raises:
        RowError: when the column holds none of them.
    """
    seconds = row.get("duration")
    length = float(seconds) if isinstance(seconds, int | float) and seconds > 0 else None
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        return AudioRef(bytes(value["bytes"]), name, length)
    if isinstance(value, bytes):
        return AudioRef(value, name, length)
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, str) or not path:
        raise RowError("missing column", f"{name}: no audio path or bytes")
    return AudioRef(folder / path, name, length)


def audio_refs(
    columns: Mapping[str, Any], names: tuple[str, ...], folder: Path, key: str
) -> tuple[AudioRef, ...]:
    """Return one reference per audio column of a row.

    Raises:
        UserError: when a row has no such column: the card is wrong, not the row.
    """
    for name in names:
        if name not in columns:
            raise UserError(f"row {key} has no audio column '{name}'; columns: {', '.join(columns)}")
    stated = columns if len(names) == 1 else {}  # `duration` speaks of one clip
    return tuple(audio_ref(columns[name], stated, folder, f"{key}.{name}") for name in names)


def open_source(card: DatasetCard, split: str) -> Source:
    """Open the rows that belong to a split of a card.

    Raises:
        UserError: when the place does not exist, cannot be read, or keeps no rows.
    """
    from uniaudio.data.sources.audiofolder import (
        AudioFolderSource,
    )  # the sources need Row and audio_refs from here
    from uniaudio.data.sources.hub import HubSource
    from uniaudio.data.sources.jsonl import JsonlSource
    from uniaudio.data.sources.parquet import ParquetSource

    kinds: dict[str, Callable[[DatasetCard, str], Source]] = {
        "hub": HubSource,
        "parquet": ParquetSource,
        "audiofolder": AudioFolderSource,
        "jsonl": JsonlSource,
    }
    source: Source = kinds[card.load.kind](card, split)
    if source.size == 0:
        raise UserError(f"{card.path}: split '{split}' keeps no rows of {card.load.location}")
    return source
