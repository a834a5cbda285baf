"""Folders that ``save_to_disk`` of ``datasets`` wrote, which ``load_dataset`` does not open."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uniaudio.data.sources.file_fingerprints import describe_files
from uniaudio.errors import UserError, convert_to_user_error

DICT_FILE, STATE_FILE = "dataset_dict.json", "state.json"  # of a DatasetDict, of a Dataset
MOST_SHARDS = 64  # that rows are divided into for the streams of a run


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder holds a saved ``DatasetDict`` or ``Dataset``."""
    return (folder / DICT_FILE).is_file() or (folder / STATE_FILE).is_file()


def describe_saved_dataset(folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Return the splits of a folder and the features of its columns as JSON; a saved ``Dataset`` is the split `train`.

    Raises:
        UserError: when they cannot be read.
    """
    with convert_to_user_error(f"{folder}: cannot be read"):
        splits, inside = ["train"], folder
        if (folder / DICT_FILE).is_file():
            splits = list(json.loads((folder / DICT_FILE).read_text(encoding="utf-8"))["splits"])
            inside = folder / splits[0]
        info = json.loads((inside / "dataset_info.json").read_text(encoding="utf-8"))
        return splits, dict(info["features"])


def fingerprint_saved_split(folder: Path, split: str) -> list[Any]:
    """Return what tells whether a split is still the same: the fingerprint by `datasets`, and its files."""
    inside = folder / split if (folder / DICT_FILE).is_file() else folder
    state = json.loads((inside / STATE_FILE).read_text(encoding="utf-8"))
    files = [str(inside / file["filename"]) for file in state["_data_files"]]
    return [state.get("_fingerprint"), describe_files(files)]


def list_audio_features(features: Mapping[str, Any]) -> list[str]:
    """Return the columns whose feature, as `datasets` writes it as JSON, is of the kind Audio."""
    return [
        name for name, kind in features.items() if isinstance(kind, Mapping) and kind.get("_type") == "Audio"
    ]


def stream_saved_dataset(folder: Path, split: str) -> Any:
    """Return a split as a stream of ``datasets``; a saved ``Dataset`` has no splits and is `train`.

    Raises:
        UserError: when there is no such split.
    """
    import datasets  # slow to import, and only needed here

    saved = datasets.load_from_disk(str(folder))
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {"train": saved}
    if split not in splits:
        raise UserError(f"{folder}: has no split '{split}'; splits: {', '.join(splits)}")
    rows = splits[split]
    return rows.to_iterable_dataset(num_shards=max(1, min(MOST_SHARDS, len(rows))))
