"""Folders that ``save_to_disk`` of ``datasets`` wrote, which ``load_dataset`` does not open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from uniaudio.errors import UserError

DICT_FILE, STATE_FILE = "dataset_dict.json", "state.json"  # of a DatasetDict, of a Dataset
MOST_SHARDS = 64  # that rows are divided into for the streams of a run


def is_saved_dataset(folder: Path) -> bool:
    """Return whether a folder holds a saved ``DatasetDict`` or ``Dataset``."""
    return (folder / DICT_FILE).is_file() or (folder / STATE_FILE).is_file()


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
