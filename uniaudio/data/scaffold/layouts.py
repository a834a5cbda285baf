"""What lies at the place that a new task is made of, and how a card loads it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from uniaudio.data.card_file import Load
from uniaudio.data.column_names import CLIPS, IDS, simplify_name
from uniaudio.data.importers.base import name_splits, read_json_rows
from uniaudio.data.sources.folder_metadata import METADATA
from uniaudio.data.sources.folder_walk import CLIPS as SUFFIXES
from uniaudio.data.sources.folder_walk import walk_files
from uniaudio.data.sources.hub_repository import describe_repository
from uniaudio.data.sources.manifest import read_table
from uniaudio.data.sources.paths import COMPRESSED, TARS, strip_common_folders
from uniaudio.data.sources.saved_datasets import describe_saved_dataset, is_saved_dataset, list_audio_features
from uniaudio.data.sources.split_files import SPLIT, choose_split_folders
from uniaudio.data.sources.split_names import find_named_splits
from uniaudio.data.sources.tar import IN_ARCHIVE
from uniaudio.errors import RowError, UserError, convert_to_user_error

LISTS, TABLES = (".jsonl", ".json", ".ndjson"), (".csv", ".tsv")
LOOKED_AT = 50  # rows of a manifest whose clips are looked for
NEARLY_ALL = 0.9  # of them hold what the column is taken for
FOUND = 0.5  # of their clips are there at least
ENDINGS = ("", ".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")  # that ids of clips lack
WHOLE = "train"  # the stored split of data without splits
ORDER = ("train", "validation", "test")
IMPORTERS = {  # files of layouts that an importer reads better than a guess
    ".trans.txt": "librispeech",
    "validated.tsv": "common-voice",
}


@dataclass(frozen=True)
class Layout:
    """Data as a card loads them.

    Args:
        load: of the card. what: in words. splits: the stored ones. audio: column or text of the clip.
        notes: what is passed over, a sentence each.
    """

    load: dict[str, Any]
    what: str
    splits: tuple[str, ...] = (WHOLE,)
    audio: str = "audio"
    notes: list[str] = field(default_factory=list)


def find_layout(place: str, config: str | None = None) -> Layout:
    """Look at a file, a folder, or a dataset of the Hub.

    Args:
        config: which of several configurations of a dataset on the Hub.

    Raises:
        UserError: when nothing here can be loaded, saying what there is.
    """
    path = Path(place).expanduser()
    if not path.exists():
        return find_hub_layout(place, config)
    path = path.absolute()
    if config is not None:
        raise UserError(
            f"--config {config}: {place} is no dataset of the Hub, which alone has configurations"
        )
    layout = find_file_layout(path) if path.is_file() else find_folder_layout(path)
    if SPLIT in str(path) or ("{" in str(path) and layout.load.keys() & {"parquet", "webdataset"}):
        raise UserError(
            f"--data {place}: braces in a path stand for several files in a card; rename the folder"
        )
    return layout


def find_file_layout(path: Path) -> Layout:
    """Look at one file."""
    name = path.name.lower()
    if name.endswith(LISTS + TABLES):
        return find_manifest_layout({WHOLE: path}, path)
    if name.endswith(".parquet"):
        return find_shard_layout("parquet", path, [path])
    if name.endswith(TARS):
        return find_shard_layout("webdataset", path, [path])
    if path.suffix.lower() in SUFFIXES:
        raise UserError(f"{path} is one recording; name a folder of them, or a manifest")
    packed = "; unpack it first" if name.endswith(COMPRESSED) else ""
    raise UserError(
        f"{path}: {path.suffix or 'a file without suffix'} is none of .jsonl, .csv, .tsv, .parquet and .tar{packed}"
    )


def find_folder_layout(folder: Path) -> Layout:
    """Look at a folder."""
    if is_saved_dataset(folder):
        return find_saved_layout(folder)
    files = list(walk_files(folder))
    kinds = Counter(find_kind(file) for file in files)
    for file in files:
        for ending, importer in IMPORTERS.items():
            if file.name.endswith(ending):
                raise UserError(
                    f"{folder} has the layout that `uniaudio data import {importer} {folder} -o DIR` reads; use that"
                )
    manifests = [file for file in files if file.parent == folder and find_kind(file) == "manifest"]
    if manifests and not any(file.name in METADATA for file in files):
        return find_manifest_layout(name_manifests(manifests, folder), folder)
    for kind, suffix in (("parquet", ".parquet"), ("webdataset", TARS)):
        shards = [file for file in files if file.name.lower().endswith(suffix) and file.name not in METADATA]
        if shards:
            return find_shard_layout(kind, folder, sorted(shards))
    if any(file.name == "wav.scp" for file in files):
        splits = name_folders(folder)
        return Layout({"kaldi": str(folder)}, "a Kaldi data directory", splits)
    if kinds["clip"] and not any(file.name in METADATA for file in files):
        deeper = [file for file in files if find_kind(file) == "manifest"]
        if len(deeper) == 1:  # such as meta/esc50.csv beside audio/
            return find_manifest_layout({WHOLE: deeper[0]}, deeper[0])
    if kinds["clip"]:
        described = any(file.name in METADATA for file in files)
        what = "a folder of clips with metadata files" if described else "a folder of clips"
        splits = name_folders(folder)
        if splits == (WHOLE,) and (folder / WHOLE).is_dir() and len(list(folder.iterdir())) > 1:
            # a class of this name: the folder itself is what the split's name stands for
            return Layout({"audiofolder": str(folder.parent / SPLIT)}, what, (folder.name,))
        return Layout({"audiofolder": str(folder)}, what, splits)
    suffixes = Counter(file.suffix.lower() or "no suffix" for file in files)
    there = ", ".join(f"{suffix} ({count:,})" for suffix, count in suffixes.most_common(5)) or "nothing"
    raise UserError(
        f"{folder} holds no recordings, manifest, .parquet or .tar files; there is {there}; name the folder that "
        "holds them"
    )


def find_kind(file: Path) -> str:
    """Return what a file is by its name: a manifest, a clip, or something else."""
    name = file.name.lower()
    if name.endswith(LISTS[:1] + LISTS[2:] + TABLES) and file.name not in METADATA:
        return "manifest"
    return "clip" if file.suffix.lower() in SUFFIXES else "other"


def name_folders(folder: Path) -> tuple[str, ...]:
    """Return the sub-folders that are splits, or the one split of a folder that has none."""
    beside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    named = {split: choose_split_folders(beside, split)[:1] for split in ORDER}
    chosen = tuple(folders[0] for folders in named.values() if folders)
    return chosen or (WHOLE,)


def name_manifests(files: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Return manifests by their splits: the only one, one called `manifest`, or those that name a split.

    Raises:
        UserError: when it cannot be told which of several files is meant.
    """
    whole = [file for file in files if file.stem == "manifest"]
    if len(files) == 1 or whole:
        return {WHOLE: (whole or list(files))[0]}
    named = {
        split: shards for split, shards in name_splits(files).items() if find_named_splits(shards[0].stem)
    }
    if not named or any(len(shards) > 1 for shards in named.values()):
        names = ", ".join(sorted(file.name for file in files)[:10])
        raise UserError(f"{folder} holds several manifests ({names}); name one of them with --data")
    return {split: shards[0] for split, shards in named.items()}


def find_manifest_layout(files: Mapping[str, Path], place: Path) -> Layout:
    """Look at manifests, one for each split: how they are read, and which column names the clips.

    Raises:
        UserError: when no column does, or the clips are not there.
    """
    notes: list[str] = []
    first = next(iter(files.values()))
    is_table = first.suffix.lower() in TABLES
    kept = {split: file for split, file in files.items() if (file.suffix.lower() in TABLES) == is_table}
    rows = read_manifest_head(first, is_table)
    audio = find_audio_column(rows, first)
    kind = "csv" if is_table else "jsonl"
    if len(kept) == 1:
        return Layout({kind: str(first)}, f"the manifest {first.name}", audio=audio, notes=notes)
    names = ", ".join(file.name for file in kept.values())
    return Layout({kind: str(place)}, f"the manifests {names}", tuple(kept), audio, notes)


def read_manifest_head(file: Path, is_table: bool) -> list[dict[str, Any]]:
    """Return the first rows of a manifest.

    Raises:
        UserError: when there is none.
    """
    skipped: Counter[str] = Counter()
    read = read_table(file) if is_table else read_json_rows(file, skipped)
    rows = [row for row in islice(read, 2 * LOOKED_AT) if not isinstance(row, RowError)][:LOOKED_AT]
    if not rows:
        raise UserError(f"{file} holds no rows; it needs a line for each recording")
    if not is_table:
        with convert_to_user_error(f"{file}: cannot be read"), file.open("rb") as stream:
            if stream.read(1) == b"[":
                raise UserError(f"{file} is one JSON list; write one object per line (JSON Lines)")
    return rows


def find_audio_column(rows: Sequence[Mapping[str, Any]], manifest: Path) -> str:
    """Return the column with the clips of a manifest, or the text that makes their paths of it.

    Paths may be relative to the manifest or to a folder near it, and may lack their suffix.

    Raises:
        UserError: when no column names a clip that is there.
    """
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if named := next((name for name in columns if is_clip_name(name)), None):
        raise UserError(
            f"{manifest}: its first line is a row already ({named}); put one with the names of columns above it, such "
            "as audio,label"
        )
    by_name = [name for known in CLIPS for name in columns if simplify_name(name) == known]
    by_value = [name for name in columns if share_of(rows, name, is_clip_name) >= NEARLY_ALL]
    ids = [name for known in IDS for name in columns if simplify_name(name) == known]
    missing, best, most = "", "", 0
    for column in dict.fromkeys((*by_name, *by_value, *ids)):
        if share_of(rows, column, is_packed_clip) >= NEARLY_ALL:
            return column
        values = [row[column] for row in rows if isinstance(row.get(column), str) and row[column]]
        if not values:
            continue
        for form in list_path_forms(column, manifest.parent):
            paths = [manifest.parent / form.replace(f"{{{{ {column} }}}}", value) for value in values]
            gone = [path for path in paths if not path.is_file()]
            if (present := len(paths) - len(gone)) > most:
                best, most = column if form == f"{{{{ {column} }}}}" else form, present
            if most >= NEARLY_ALL * len(rows):
                return best
            if present:
                there = f"{len(gone)} of the first {len(rows)} clips that `{column}` names are not there"
                missing = missing or f"{there}, such as {gone[0]}"
        missing = missing or f"`{column}` names {values[0]}, which is in no folder near it"
    if most >= FOUND * len(rows):
        return best
    if missing:
        raise UserError(f"{manifest}: {missing}; write paths relative to the manifest")
    raise UserError(
        f"{manifest}: no column names the recordings; the columns are {', '.join(map(str, columns))}; call the one "
        "with their paths `audio`"
    )


def list_path_forms(column: str, folder: Path) -> list[str]:
    """Return texts that may make paths of a column: as it stands, below folders near by, with a suffix."""
    plain = f"{{{{ {column} }}}}"
    if not re.fullmatch(r"[^\W\d]\w*", column):
        return [plain]
    near = [path for path in (folder, folder.parent) for path in sorted(path.iterdir()) if path.is_dir()][:40]
    places = ["", *(f"{os.path.relpath(path, folder)}/" for path in near), "../"]
    return [f"{place}{plain}{ending}" for ending in ENDINGS for place in places]


def share_of(rows: Sequence[Mapping[str, Any]], column: str, is_true: Any) -> float:
    """Return the share of rows whose column is something."""
    return sum(bool(is_true(row.get(column))) for row in rows) / len(rows)


def is_clip_name(value: Any) -> bool:
    return isinstance(value, str) and Path(value).suffix.lower() in SUFFIXES


def is_packed_clip(value: Any) -> bool:
    """Return whether a value names a part of a file, a member of an archive, or a URL."""
    if isinstance(value, Mapping):
        return "path" in value or "bytes" in value
    return isinstance(value, str) and (IN_ARCHIVE in value or "://" in value)


def find_shard_layout(kind: str, place: Path, files: Sequence[Path]) -> Layout:
    """Look at Parquet files or tars: the splits that their names state, and the column with clips."""
    parts = strip_common_folders([str(file) for file in files])
    named = [set[str]().union(*map(find_named_splits, path)) for path in parts]
    splits = tuple(split for split in ORDER if any(split in names for names in named)) or (WHOLE,)
    what = {"parquet": "Parquet file(s)", "webdataset": "WebDataset tar(s)"}[kind]
    audio, notes = find_parquet_audio(files[0]) if kind == "parquet" else ("audio", [])
    return Layout({kind: str(place)}, f"{len(files):,} {what}", splits, audio, notes)


def find_parquet_audio(file: Path) -> tuple[str, list[str]]:
    """Return the column with clips of a Parquet file, and notes.

    Raises:
        UserError: naming the columns where none holds clips.
    """
    import pyarrow
    import pyarrow.parquet as pq

    with convert_to_user_error(f"{file}: cannot be read"):
        schema = pq.read_schema(file)
    structs = [
        f.name for f in schema if pyarrow.types.is_struct(f.type) and "bytes" in {p.name for p in f.type}
    ]
    blobs = [
        f.name for f in schema if pyarrow.types.is_binary(f.type) or pyarrow.types.is_large_binary(f.type)
    ]
    paths = [known for known in CLIPS if known in schema.names]
    return choose_audio_column(structs or blobs or paths[:1], schema.names, str(file))


def choose_audio_column(clips: Sequence[str], columns: Sequence[str], where: str) -> tuple[str, list[str]]:
    """Return the first column with clips, and a note where there are several.

    Raises:
        UserError: naming the columns where there is none.
    """
    if not clips:
        raise UserError(f"{where}: none of its columns {', '.join(columns)} holds audio")
    notes = [f"of the audio columns {', '.join(clips)} the first is used"] if len(clips) > 1 else []
    return clips[0], notes


def find_saved_layout(folder: Path) -> Layout:
    """Look at a folder of `save_to_disk`."""
    saved = describe_saved_dataset(folder)
    audio, notes = choose_audio_column(saved.clips, list(saved.features), str(folder))
    return Layout({"hub": str(folder)}, "a folder of save_to_disk", tuple(saved.splits), audio, notes)


def find_hub_layout(name: str, config: str | None) -> Layout:
    """Look at a dataset of the Hub; its commit is stated, so that the task stays the same.

    Raises:
        UserError: when there is none of this name.
    """
    where = f"--data {name}"
    try:
        validate_repo_id(name)
    except HFValidationError:
        raise UserError(f"{where}: there is no such file or folder") from None
    if name.count("/") != 1:
        raise UserError(f"{where}: there is no such file or folder, and Hub names are written OWNER/NAME")
    repository = describe_repository(
        Load.model_validate({"hub": name, "config": config}), f"{where}: cannot be opened"
    )
    listed = repository.list_splits(config, where)
    features = repository.read_features(config)
    if listed is None or not features:
        listed, features = describe_with_datasets(name, config, repository.commit, where)
    audio, notes = choose_audio_column(
        list_audio_features(features) or [known for known in CLIPS if known in features],
        list(features),
        where,
    )
    load = {"hub": name, **({"config": config} if config else {}), "revision": repository.commit}
    return Layout(load, "a dataset of the Hub", tuple(listed), audio, notes)


def describe_with_datasets(
    name: str, config: str | None, commit: str, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return splits and features of a dataset whose files only `datasets` understands."""
    import datasets  # slow to import

    from uniaudio.hub_client import call_hub

    with convert_to_user_error(f"{where}: cannot be opened"):
        builder = call_hub(lambda: datasets.load_dataset_builder(name, config, revision=commit))
        names = dict.fromkeys(builder.info.splits or builder.config.data_files or [WHOLE])
        stream = call_hub(lambda: builder.as_streaming_dataset(split=next(iter(names))))
        features = stream.features or stream._resolve_features().features
        return dict.fromkeys(map(str, names)), dict(features.to_dict())
