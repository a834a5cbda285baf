"""Folders of clips: ``<folder>/<label>/<clip>``, with more columns from metadata files and texts beside clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniaudio.config.text_files import decode_text
from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.folder_metadata import METADATA, MetadataRow, read_metadata
from uniaudio.data.sources.folder_walk import CLIPS, describe_suffix, walk_files
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
    only the metadata name is a row too, so that its lack is reported.
    """

    def __init__(self, card: DatasetCard, split: str) -> None:
        folder = find_split_folder(card, split, self.left_out)
        clips, metadata = set[str](), list[Path]()
        texts: dict[str, list[Path]] = {}
        for file in walk_files(folder, self.left_out):
            if file.name in METADATA:
                metadata.append(file)
            elif file.suffix.lower() in CLIPS:
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
        rows: list[tuple[str, dict[str, Any] | RowError]] = list(
            iterate_folder_rows(card, clips, described, self.left_out, beside)
        )
        rows += [(error.key, error) for error in errors]
        super().__init__(card, split, rows, folder)


def iterate_folder_rows(
    card: DatasetCard,
    clips: Collection[str],
    described: Sequence[MetadataRow],
    left_out: Counter[str],
    beside: Mapping[str, Sequence[Path]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, columns) of the clips of a split in the order of their names.

    Args:
        clips: paths relative to the folder of the split. described: what metadata files say of them.
        left_out: is counted what is skipped, by reason. beside: files with texts of a clip, by its path.
    """
    by_name: dict[str, list[MetadataRow]] = {}
    for row in described:
        by_name.setdefault(row.name, []).append(row)
    has_labels = any("label" in row.columns for row in described)
    # metadata that name several clips in one row: no clip is a row of its own
    in_rows = any(len(set(row.clips.values())) > 1 for row in described)
    for name in sorted({*by_name, *clips}):
        label = {"label": Path(name).parent.name} if "/" in name and not has_labels else {}
        known = {**label, **read_texts(beside.get(name, ()), left_out)}
        for row in by_name.get(name, []):
            yield name, {**known, **row.columns, "file_name": name, **row.clips}
        if name not in by_name:
            if described:
                left_out["clip without metadata" + (", not used" if in_rows else "")] += 1
            if not in_rows:
                yield name, {**known, "file_name": name, **dict.fromkeys(card.audio, name)}


def read_texts(files: Sequence[Path], left_out: Counter[str]) -> dict[str, Any]:
    """Return what files beside a clip say of it: the keys of a ``.json``, and the content of any other as ``text``.

    One that says nothing of the kind (a list, another encoding) is counted in ``left_out``: it may be there for other
    purposes, and the clip is a row without it.
    """
    columns: dict[str, Any] = {}
    for file in files:
        try:
            if file.suffix.lower() == ".json":
                columns |= parse_json_object(file.read_bytes())
            else:
                columns["text"] = decode_text(file.read_bytes()).strip()
        except (OSError, ValueError):
            left_out[f"{file.suffix.lower()} beside a clip that cannot be read as columns"] += 1
    return columns
