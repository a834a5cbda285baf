"""What lies at the place that a new task is made of, and how a card loads it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils._validators import validate_repo_id

from uniaudio.config.path_variables import make_absolute
from uniaudio.data.card_file import Load
from uniaudio.data.column_names import CLIPS
from uniaudio.data.importers.base import name_splits
from uniaudio.data.scaffold.clip_column import (
    choose_audio_column,
    find_audio_column,
    find_parquet_audio,
    read_manifest_head,
)
from uniaudio.data.sources.folder_metadata import METADATA
from uniaudio.data.sources.folder_walk import is_clip, walk_files
from uniaudio.data.sources.hub_repository import describe_repository
from uniaudio.data.sources.paths import COMPRESSED, TARS, strip_common_folders
from uniaudio.data.sources.saved_datasets import describe_saved_dataset, is_saved_dataset, list_audio_features
from uniaudio.data.sources.split_files import ONLY_SPLIT, SPLIT, choose_split_folders
from uniaudio.data.sources.split_names import find_named_splits
from uniaudio.errors import UserError, convert_to_user_error

LISTS, TABLES = (".jsonl", ".json", ".ndjson"), (".csv", ".tsv")
ORDER = ("train", "validation", "test")
IMPORTERS = {  # ends of paths in layouts that an importer reads better than a guess
    ".trans.txt": "librispeech",
    "/validated.tsv": "common-voice",
}


@dataclass(frozen=True)
class Layout:
    """Data as a card loads them.

    Args:
        load: of the card. what: in words. splits: the stored ones. audio: column or text of the clip.
        notes: what is skipped, a sentence each.
    """

    load: dict[str, Any]
    what: str
    splits: tuple[str, ...] = (ONLY_SPLIT,)
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
    path = make_absolute(path)
    if config is not None:
        raise UserError(
            f"--config {config}: {place} is not a Hub dataset, and only those have configurations"
        )
    layout = find_file_layout(path) if path.is_file() else find_folder_layout(path)
    if SPLIT in str(path) or ("{" in str(path) and layout.load.keys() & {"parquet", "webdataset"}):
        raise UserError(
            f"--data {place}: in a card, braces in a path stand for several files; rename the folder"
        )
    return layout


def find_file_layout(path: Path) -> Layout:
    """Look at one file."""
    name = path.name.lower()
    if name.endswith(LISTS + TABLES):
        return find_manifest_layout({ONLY_SPLIT: path}, path)
    if name.endswith(".parquet"):
        return find_shard_layout("parquet", path, [path])
    if name.endswith(TARS):
        return find_shard_layout("webdataset", path, [path])
    if is_clip(name):
        raise UserError(f"{path} is one recording; name a folder of recordings, or a manifest")
    packed = "; unpack it first" if name.endswith(COMPRESSED) else ""
    raise UserError(
        f"{path}: {path.suffix or 'a file without suffix'} is not one of .jsonl, .csv, .tsv, "
        f".parquet and .tar{packed}"
    )


def find_folder_layout(folder: Path) -> Layout:
    """Look at a folder."""
    if is_saved_dataset(folder):
        return find_saved_layout(folder)
    files = list(walk_files(folder))
    has_metadata = any(file.name in METADATA for file in files)
    for file in files:
        for ending, importer in IMPORTERS.items():
            if file.as_posix().endswith(ending):
                raise UserError(
                    f"{folder} has a layout for which there is an importer; use `uniaudio data "
                    f"import {importer} {folder} -o DIR`"
                )
    manifests = [file for file in files if is_manifest(file)]
    beside = [file for file in manifests if file.parent == folder]
    if beside and not has_metadata:
        return find_manifest_layout(name_manifests(beside, folder), folder)
    for kind, suffix in (("parquet", ".parquet"), ("webdataset", TARS)):
        shards = [file for file in files if file.name.lower().endswith(suffix) and file.name not in METADATA]
        if shards:
            return find_shard_layout(kind, folder, sorted(shards))
    if any(file.name == "wav.scp" for file in files):
        splits = name_folders(folder)
        return Layout({"kaldi": str(folder)}, "a Kaldi data directory", splits)
    if any(is_clip(file.name) for file in files):
        if len(manifests) == 1 and not has_metadata:  # such as meta/esc50.csv beside audio/
            return find_manifest_layout({ONLY_SPLIT: manifests[0]}, manifests[0])
        what = "a folder of clips with metadata files" if has_metadata else "a folder of clips"
        splits = name_folders(folder)
        if splits == (ONLY_SPLIT,) and (folder / ONLY_SPLIT).is_dir() and len(list(folder.iterdir())) > 1:
            # a class of this name: the folder itself is what the split's name stands for
            return Layout({"audiofolder": str(folder.parent / SPLIT)}, what, (folder.name,))
        return Layout({"audiofolder": str(folder)}, what, splits)
    suffixes = Counter(file.suffix.lower() or "no suffix" for file in files)
    there = ", ".join(f"{suffix} ({count:,})" for suffix, count in suffixes.most_common(5)) or "nothing"
    raise UserError(
        f"{folder} contains no recordings, manifest, .parquet or .tar files (found: {there}); name "
        "the folder that contains them"
    )


def is_manifest(file: Path) -> bool:
    """Return whether a file is a manifest by its name."""
    return file.name.lower().endswith(LISTS[:1] + LISTS[2:] + TABLES) and file.name not in METADATA


def name_folders(folder: Path) -> tuple[str, ...]:
    """Return the sub-folders that are splits, or the one split of a folder that has none."""
    beside = sorted(path.name for path in folder.iterdir() if path.is_dir())
    named = {split: choose_split_folders(beside, split)[:1] for split in ORDER}
    chosen = tuple(folders[0] for folders in named.values() if folders)
    return chosen or (ONLY_SPLIT,)


def name_manifests(files: Sequence[Path], folder: Path) -> dict[str, Path]:
    """Return manifests by their splits: the only one, one called `manifest`, or those that name a split.

    Raises:
        UserError: when it cannot be told which of several files is meant.
    """
    whole = [file for file in files if file.stem == "manifest"]
    if len(files) == 1 or whole:
        return {ONLY_SPLIT: (whole or list(files))[0]}
    named = {
        split: shards for split, shards in name_splits(files).items() if find_named_splits(shards[0].stem)
    }
    if not named or any(len(shards) > 1 for shards in named.values()):
        names = ", ".join(sorted(file.name for file in files)[:10])
        raise UserError(f"{folder} contains several manifests ({names}); name one of them with --data")
    return {split: shards[0] for split, shards in named.items()}


def find_manifest_layout(files: Mapping[str, Path], place: Path) -> Layout:
    """Look at manifests, one for each split: how they are read, and which column names the clips.

    Raises:
        UserError: when no column does, the clips are not there, or the manifests are of two kinds.
    """
    first = next(iter(files.values()))
    is_table = first.suffix.lower() in TABLES
    names = ", ".join(file.name for file in files.values())
    if any((file.suffix.lower() in TABLES) != is_table for file in files.values()):
        raise UserError(
            f"{place} contains tables and JSON Lines ({names}), but a card loads one kind; convert them to the same "
            "kind, or name one of them with --data"
        )
    rows = read_manifest_head(first, is_table)
    audio = find_audio_column(rows, first)
    kind = "csv" if is_table else "jsonl"
    if len(files) == 1:
        return Layout({kind: str(first)}, f"the manifest {first.name}", audio=audio)
    return Layout({kind: str(place)}, f"the manifests {names}", tuple(files), audio)


def find_shard_layout(kind: str, place: Path, files: Sequence[Path]) -> Layout:
    """Look at Parquet files or tars: the splits that their names state, and the column with clips."""
    parts = strip_common_folders([str(file) for file in files])
    named = [set[str]().union(*map(find_named_splits, path)) for path in parts]
    splits = tuple(split for split in ORDER if any(split in names for names in named)) or (ONLY_SPLIT,)
    what = {"parquet": "Parquet file(s)", "webdataset": "WebDataset tar(s)"}[kind]
    audio, notes = find_parquet_audio(files[0]) if kind == "parquet" else ("audio", [])
    return Layout({kind: str(place)}, f"{len(files):,} {what}", splits, audio, notes)


def find_saved_layout(folder: Path) -> Layout:
    """Look at a folder of `save_to_disk`."""
    splits, features = describe_saved_dataset(folder)
    audio, notes = choose_audio_column(list_audio_features(features), list(features), str(folder))
    return Layout({"hub": str(folder)}, "a folder of save_to_disk", tuple(splits), audio, notes)


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
        names = dict.fromkeys(builder.info.splits or builder.config.data_files or [ONLY_SPLIT])
        stream = call_hub(lambda: builder.as_streaming_dataset(split=next(iter(names))))
        features = stream.features or stream._resolve_features().features
        return dict.fromkeys(map(str, names)), dict(features.to_dict())
