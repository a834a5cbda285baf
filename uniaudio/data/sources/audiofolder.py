"""Folders of clips: ``<folder>/<label>/<clip>``, with more columns from metadata files and texts beside clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniaudio.config.text_files import decode_text
from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.folder_metadata import METADATA, MetadataRow, read_metadata
from uniaudio.data.sources.folder_walk import describe_suffix, is_clip, walk_files
from uniaudio.data.sources.in_memory import ListedSource
from uniaudio.data.sources.split_files import find_split_folder
from uniaudio.data.sources.webdataset import parse_json_object
from uniaudio.errors import RowError

TEXTS = (".txt", ".lab", ".json")  # suffixes of files beside a clip, with its name, that say what it is


class AudioFolderSource(ListedSource):
    """All clips below a folder; a sub-folder that names the stored split is the split.

    Columns: ``file_name``, ``label`` (the clip's folder, where it lies in one), ``text`` of a ``.txt`` or ``.lab``
    beside the clip and the keys of such a ``.json``, and those of the metadata files, which may lie in any folder: the
    card's, the split's, and those below. Where metadata have a ``label`` of their own, folders give none. A file that
    only the metadata name is a row too, so that its lack is reported. A ``.txt`` or ``.lab`` is opened only where the
    card's readers use ``text``; a ``.json`` always, for it may state lengths, labels and ids.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        folder = find_split_folder(card, split, self.left_out)
        clips, metadata = set[str](), list[Path]()
        texts: dict[str, list[Path]] = {}
        for file in walk_files(folder, self.left_out):
            if file.name in METADATA:
                metadata.append(file)
            elif is_clip(file.name):
                clips.add(file.relative_to(folder).as_posix())
            elif file.suffix.lower() in TEXTS:
                texts.setdefault(file.relative_to(folder).with_suffix("").as_posix(), []).append(file)
            else:
                self.left_out[describe_suffix(file)] += 1
        beside = {clip: texts[stem] for clip in clips if (stem := clip.rpartition(".")[0]) in texts}
        alone = texts.keys() - {clip.rpartition(".")[0] for clip in beside}
        self.left_out.update(describe_suffix(file) for stem in alone for file in texts[stem])
        place = Path(card.load.location)
        if folder.is_relative_to(place):
            above = folder.parents[: len(folder.parts) - len(place.parts)]
            metadata += [up / name for up in above for name in METADATA if (up / name).is_file()]
        described, errors = read_metadata(card, folder, metadata, clips, self.left_out)
        columns = read_texts(card, split, beside, collect_columns(clips, described), self.left_out)
        rows = iterate_folder_rows(card, clips, described, errors, self.left_out, columns)
        super().__init__(card, split, rows, folder)


def iterate_folder_rows(
    card: DatasetCard,
    clips: Collection[str],
    described: Sequence[MetadataRow],
    errors: Sequence[RowError],
    left_out: Counter[str],
    beside: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, dict[str, Any] | RowError]]:
    """Yield (name, columns) of the clips of a split in the order of their names, and behind them the errors.

    Args:
        clips: paths relative to the folder of the split. described: what metadata files say of them.
        errors: of rows of these files that cannot be used. left_out: is counted what is skipped, by reason.
        beside: what files beside a clip say of it, by its path.
    """
    by_name: dict[str, list[MetadataRow]] = {}
    for row in described:
        by_name.setdefault(row.name, []).append(row)
    has_labels = has_stated_labels(described)
    # metadata that name several clips in one row: no clip is a row of its own
    in_rows = any(len(set(row.clips.values())) > 1 for row in described)
    for name in sorted({*by_name, *clips}):
        label = {"label": Path(name).parent.name} if "/" in name and not has_labels else {}
        known = {**label, **beside.get(name, {})}
        for row in by_name.get(name, []):
            yield name, {**known, **row.columns, "file_name": name, **row.clips}
        if name not in by_name:
            if described:
                left_out["clip without metadata" + (", not used" if in_rows else "")] += 1
            if not in_rows:
                yield name, {**known, "file_name": name, **dict.fromkeys(card.audio, name)}
    yield from ((error.key, error) for error in errors)


def has_stated_labels(described: Sequence[MetadataRow]) -> bool:
    """Return whether metadata have a ``label``, so that folders give none."""
    return any("label" in row.columns for row in described)


def collect_columns(clips: Collection[str], described: Sequence[MetadataRow]) -> set[str]:
    """Return the columns that a folder of clips has without the files beside them."""
    columns = {"file_name"} | {name for row in described for name in (*row.columns, *row.clips)}
    if not has_stated_labels(described) and any("/" in name for name in clips):
        columns.add("label")
    return columns


def read_texts(
    card: DatasetCard,
    split: str,
    beside: Mapping[str, Sequence[Path]],
    there: Collection[str],
    left_out: Counter[str],
) -> dict[str, dict[str, Any]]:
    """Return what files beside clips say of them, by clip: the keys of a ``.json``, any other's content as ``text``.

    Where nothing uses ``text``, files that have no other column are not opened.

    Args:
        beside: the files of each clip. there: the columns that rows have without them. left_out: is counted what says
            nothing of the kind (a list, another encoding): it may be there for other purposes, and the clip is a row
            without it.
    """
    files = {file for of_clip in beside.values() for file in of_clip}
    texts = {file for file in files if file.suffix.lower() != ".json"}
    read = {file: read_text_columns(file, left_out) for file in files - texts}
    known = {*there, *card.audio, *(["text"] if texts else [])}.union(*read.values())
    used = card.list_columns_to_read(split, known)
    if used is None or "text" in used:
        read |= {file: read_text_columns(file, left_out) for file in texts}
    return {
        clip: {name: value for file in of_clip for name, value in read.get(file, {}).items()}
        for clip, of_clip in beside.items()
    }


def read_text_columns(file: Path, left_out: Counter[str]) -> dict[str, Any]:
    """Return the columns that a file beside a clip gives its row; none where it cannot be read, which is counted."""
    try:
        if file.suffix.lower() == ".json":
            return parse_json_object(file.read_bytes())
        return {"text": decode_text(file.read_bytes()).strip()}
    except (OSError, ValueError):
        left_out[f"{file.suffix.lower()} next to a clip, not readable as columns"] += 1
        return {}
