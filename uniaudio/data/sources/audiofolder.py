"""Folders of clips: ``<folder>/<label>/<clip>``, with more columns from a metadata file where there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.listed import ListedSource
from uniaudio.data.sources.manifest import read_jsonl, read_table, whole_rows
from uniaudio.data.sources.places import folder_of_split
from uniaudio.errors import UserError

SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff", ".au"}
CLIPS = SUFFIXES | {
    ".m4a"
}  # a clip too: that it cannot be decoded is told, where passing over it would hide it


def read_metadata(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read ``metadata.jsonl`` or ``metadata.csv`` by their column ``file_name``; a file may have several rows.

    Raises:
        UserError: when a row has no such column.
    """
    if (folder / "metadata.jsonl").is_file():
        file, rows = folder / "metadata.jsonl", read_jsonl(folder / "metadata.jsonl")
    elif (folder / "metadata.csv").is_file():
        file, rows = folder / "metadata.csv", read_table(folder / "metadata.csv")
    else:
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in whole_rows(file, rows):
        if "file_name" not in row:
            raise UserError(f"{folder}: every row of the metadata file needs a `file_name`")
        found.setdefault(str(row["file_name"]), []).append(row)
    return found


class AudioFolderSource(ListedSource):
    """All clips below a folder; a sub-folder named like the stored split is the split.

    Columns: ``file_name``, ``label`` (the clip's folder, where it lies in one) and those of the metadata file. A file
    that only the metadata name is a row too, so that its lack is told.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        folder = folder_of_split(card, split)
        metadata = read_metadata(folder)
        files = {
            file.relative_to(folder).as_posix()
            for file in folder.rglob("*")
            if file.suffix.lower() in CLIPS and not file.name.startswith(".")
        }
        rows = []
        for name in sorted(files | set(metadata)):
            label = {"label": Path(name).parent.name} if "/" in name else {}
            for more in metadata.get(name, [{}]):
                rows.append((name, {"file_name": name, **label, **more, **dict.fromkeys(card.audio, name)}))
        super().__init__(card, split, rows, folder)
