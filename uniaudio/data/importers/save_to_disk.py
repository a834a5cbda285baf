"""Folders that `save_to_disk` of `datasets` wrote."""

from __future__ import annotations

from pathlib import Path

from uniaudio.data.importers.base import ImportedData, ImportOptions, choose_question
from uniaudio.data.sources.saved_datasets import (
    DICT_FILE,
    STATE_FILE,
    describe_saved_dataset,
    is_saved_dataset,
)
from uniaudio.errors import UserError


def read_saved_folder(source: Path, options: ImportOptions) -> ImportedData:
    """Read a `DatasetDict` or a `Dataset` on disk: columns and splits as its features name them."""
    if not is_saved_dataset(source):
        raise UserError(
            f"{source}: was not written by save_to_disk: it has neither {DICT_FILE} nor {STATE_FILE}"
        )
    saved = describe_saved_dataset(source)
    data = ImportedData()
    if len(saved.clips) > 1:
        data.notes.append(f"of the audio columns {', '.join(saved.clips)}, the first is used")
    question = choose_question(set(saved.features) - set(saved.clips), options.name)
    data.add_card(
        options.name,
        load={"hub": str(source.absolute())},
        audio=saved.clips[0],
        columns=question.columns,
        splits={split: {"name": split} for split in saved.splits},
    )
    data.add_question(options.name, question)
    return data
