"""Folders of clips: ``<folder>/<label>/<clip>``, with more columns from a metadata file where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.listed import ListedSource
from uniaudio.data.sources.manifest import read_jsonl, read_table
from uniaudio.errors import UserError

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".au"}


def read_metadata(folder: Path) -> dict[str, dict[str, Any]]:
    """Read ``metadata.jsonl`` or ``metadata.csv`` by their column ``file_name``."""
    if (folder / "metadata.jsonl").is_file():
        rows = read_jsonl(folder / "metadata.jsonl")
    elif (folder / "metadata.csv").is_file():
        rows = read_table(folder / "metadata.csv")
    else:
        return {}
    if any("file_name" not in row for row in rows):
        raise UserError(f"{folder}: every row of the metadata file needs a `file_name`")
    return {str(row["file_name"]): row for row in rows}


class AudioFolderSource(ListedSource):
    """All clips below a folder; a sub-folder named like the stored split is the split.

    Columns: ``file_name``, ``label`` (the clip's folder, where it lies in one) and those of the metadata file.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        folder = Path(card.load.location)
        if not folder.is_dir():
            raise UserError(f"{card.path}: load.audiofolder: there is no folder {folder}")
        named = folder / card.split(split).name
        folder = named if named.is_dir() else folder
        metadata = read_metadata(folder)
        rows = []
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() not in SUFFIXES:
                continue
            name = file.relative_to(folder).as_posix()
            label = {"label": file.parent.name} if file.parent != folder else {}
            columns = {
                "file_name": name,
                **label,
                **metadata.get(name, {}),
                **dict.fromkeys(card.audio, name),
            }
            rows.append((name, columns))
        super().__init__(card, split, rows, folder)
