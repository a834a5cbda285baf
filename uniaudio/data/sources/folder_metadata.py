"""Metadata files of folders of clips, in the layouts of the Hub's AudioFolder."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.manifest import clear_empty_cells, make_keyed_error, read_jsonl, read_table
from uniaudio.data.sources.parquet_values import read_parquet_rows
from uniaudio.errors import RowError, UserError

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")  # the first of a folder is read
SHOWN = 40  # letters of the name of a column: without a header, these are a text
FILE_NAME, ONE_OF_SEVERAL = "file_name", "_file_name"


@dataclass(frozen=True)
class MetadataRow:
    """What a metadata file says of one row.

    Args:
        clips: path of each audio column's clip, relative to the folder of the split.
    """

    clips: Mapping[str, str]
    columns: Mapping[str, Any]

    @property
    def name(self) -> str:
        return next(iter(self.clips.values()))


def read_metadata(
    card: DatasetCard, folder: Path, metadata: Iterable[Path], clips: Iterable[str], left_out: Counter[str]
) -> tuple[list[MetadataRow], list[RowError]]:
    """Read the metadata files of a split; of files that speak of one clip, the nearest to it counts.

    Args:
        folder: of the split. metadata: files in it and in the folders above. clips: paths relative to the folder.
        left_out: is counted what is skipped, by reason.

    Raises:
        UserError: when a file cannot be read or has no column with paths.
    """
    clips = sorted(clips)
    spelled = {lower_suffix(simplify_path(clip)): clip for clip in clips}
    spelled |= {simplify_path(clip): clip for clip in clips}
    rows: list[MetadataRow] = []
    errors: list[RowError] = []
    described: set[str] = set()
    for file in sorted(
        choose_first_of_folders(metadata, left_out), key=lambda file: (-len(file.parts), file)
    ):
        nearest: list[MetadataRow] = []
        lines = read_rows(file)
        refuse_without_paths(card, lines, file)
        for number, row in enumerate(lines, 1):
            if isinstance(row, RowError):
                errors.append(make_keyed_error(row.reason, f"{file}: {row.detail}", f"{file.name} {row.key}"))
                continue
            paths = {audio: row.get(column) for audio, column in find_path_columns(card, row).items()}
            if not paths or not all(isinstance(path, str) and path for path in paths.values()):
                detail = f"{file}: row {number} names no file"
                errors.append(make_keyed_error("missing column", detail, f"{file.name} row {number}"))
                continue
            named = {audio: locate(str(path), file, folder, spelled) for audio, path in paths.items()}
            if folder != file.parent and folder.is_relative_to(file.parent) and is_outside(named.values()):
                left_out["metadata row of another folder"] += 1
            elif next(iter(named.values())) in described:
                left_out["metadata row of a clip that is in a nearer metadata file"] += 1
            else:
                nearest.append(MetadataRow(named, row))
        rows += nearest
        described |= {row.name for row in nearest}
    return rows, errors


def choose_first_of_folders(metadata: Iterable[Path], left_out: Counter[str]) -> list[Path]:
    """Return one metadata file of each folder."""
    chosen: dict[Path, Path] = {}
    for file in sorted(metadata, key=lambda file: METADATA.index(file.name)):
        if chosen.setdefault(file.parent, file) != file:
            left_out[f"metadata file beside {chosen[file.parent].name}"] += 1
    return list(chosen.values())


def read_rows(file: Path) -> list[dict[str, Any] | RowError]:
    """Read a metadata file of any kind; an empty cell of a table is no value."""
    if file.suffix == ".jsonl":
        return read_jsonl(file)
    if file.suffix == ".parquet":
        return list(read_parquet_rows(file))
    return [row if isinstance(row, RowError) else clear_empty_cells(row) for row in read_table(file)]


def find_path_columns(card: DatasetCard, row: Mapping[str, Any]) -> dict[str, str]:
    """Return which column of a metadata row holds the path of each audio column of the card; empty for none."""
    several = {audio: f"{audio}{ONE_OF_SEVERAL}" for audio in card.audio}
    if set(several.values()) <= set(row):
        return several
    return dict.fromkeys(card.audio, FILE_NAME) if FILE_NAME in row else {}


def refuse_without_paths(card: DatasetCard, rows: Iterable[dict[str, Any] | RowError], file: Path) -> None:
    """Refuse a metadata file of which no row names a clip.

    Raises:
        UserError: saying what the card would have to name.
    """
    read = [row for row in rows if not isinstance(row, RowError)]
    if not read or any(find_path_columns(card, row) for row in read):
        return
    known = [name.removesuffix(ONE_OF_SEVERAL) for name in read[0] if name.endswith(ONE_OF_SEVERAL)]
    if known:
        raise UserError(
            f"{card.path}: audio: {file} has clips for the audio columns {', '.join(known)}; name them as `audio`"
        )
    columns = ", ".join(name[:SHOWN] for name in read[0])
    raise UserError(
        f"{file}: every row of the metadata file needs a `file_name`, or a `NAME_file_name` for an "
        f"audio column NAME; its columns are {columns}"
    )


def locate(path: str, file: Path, folder: Path, spelled: Mapping[str, str]) -> str:
    """Return the path of a clip relative to the folder of the split, as the file system spells it.

    Written with ``./``, with backslashes, with accents composed otherwise, with its suffix in another case, or with the
    name of the metadata file's own folder before it, it is the same clip.
    """
    written = path.replace("\\", "/")
    above = [file.parent.parent] if written.startswith(f"{file.parent.name}/") else []
    for spelling, base in [(path, file.parent), *((written, base) for base in (file.parent, *above))]:
        relative = simplify_path(os.path.relpath(os.path.join(base, spelling), folder))
        for name in (relative, lower_suffix(relative)):
            if name in spelled:
                return spelled[name]
    return os.path.relpath(os.path.join(file.parent, written), folder)


def simplify_path(path: str) -> str:
    return unicodedata.normalize("NFC", path)


def lower_suffix(path: str) -> str:
    stem, suffix = os.path.splitext(path)
    return stem + suffix.lower()


def is_outside(paths: Iterable[str]) -> bool:
    return any(path.split("/")[0] == ".." for path in paths)
