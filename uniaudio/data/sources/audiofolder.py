"""Folders of clips: ``<folder>/<label>/<clip>``, with more columns from metadata files where there are some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.audio_suffixes import CLIPS
from uniaudio.data.sources.folder_metadata import METADATA, MetadataRow, read_metadata
from uniaudio.data.sources.folder_walk import describe_suffix, walk_files
from uniaudio.data.sources.in_memory import ListedSource
from uniaudio.data.sources.paths import find_split_folder
from uniaudio.errors import RowError


class AudioFolderSource(ListedSource):
    """All clips below a folder; a sub-folder that names the stored split is the split.

    Columns: ``file_name``, ``label`` (the clip's folder, where it lies in one) and those of the metadata files, which
    may lie in any folder: the card's, the split's, and those below. Where metadata have a ``label`` of their own,
    folders give none. A file that only the metadata name is a row too, so that its lack is told.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        folder = find_split_folder(card, split, self.left_out)
        clips, metadata = set[str](), list[Path]()
        for file in walk_files(folder, self.left_out):
            if file.name in METADATA:
                metadata.append(file)
            elif file.suffix.lower() in CLIPS:
                clips.add(file.relative_to(folder).as_posix())
            else:
                self.left_out[describe_suffix(file)] += 1
        place = Path(card.load.location)
        if folder.is_relative_to(place):
            above = folder.parents[: len(folder.parts) - len(place.parts)]
            metadata += [up / name for up in above for name in METADATA if (up / name).is_file()]
        described, errors = read_metadata(card, folder, metadata, clips, self.left_out)
        rows: list[tuple[str, dict[str, Any] | RowError]] = list(
            iterate_folder_rows(card, clips, described, self.left_out)
        )
        rows += [(error.key, error) for error in errors]
        super().__init__(card, split, rows, folder)


def iterate_folder_rows(
    card: DatasetCard, clips: Collection[str], described: Sequence[MetadataRow], left_out: Counter[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, columns) of the clips of a split in the order of their names.

    Args:
        clips: paths relative to the folder of the split. described: what metadata files say of them.
        left_out: is counted what is passed over, by reason.
    """
    by_name: dict[str, list[MetadataRow]] = {}
    for row in described:
        by_name.setdefault(row.name, []).append(row)
    has_labels = any("label" in row.columns for row in described)
    # metadata that name several clips in one row: no clip is a row of its own
    in_rows = any(len(set(row.clips.values())) > 1 for row in described)
    for name in sorted({*by_name, *clips}):
        label = {"label": Path(name).parent.name} if "/" in name and not has_labels else {}
        for row in by_name.get(name, []):
            yield name, {**label, **row.columns, "file_name": name, **row.clips}
        if name not in by_name:
            if described:
                left_out["clip without metadata" + (", not used" if in_rows else "")] += 1
            if not in_rows:
                yield name, {"file_name": name, **label, **dict.fromkeys(card.audio, name)}
