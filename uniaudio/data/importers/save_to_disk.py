"""Folders that `save_to_disk` of `datasets` wrote."""

from __future__ import annotations

from pathlib import Path

from uniaudio.data.importers.base import ImportedData, ImportOptions, choose_question
from uniaudio.data.scaffold.clip_column import choose_audio_column
from uniaudio.data.sources.saved_datasets import (
    DICT_FILE,
    STATE_FILE,
    describe_saved_dataset,
    is_saved_dataset,
    list_audio_features,
)
from uniaudio.errors import UserError


def read_saved_folder(source: Path, options: ImportOptions) -> ImportedData:
    """Read a `DatasetDict` or a `Dataset` on disk: columns and splits as its features name them."""
    if not is_saved_dataset(source):
        raise UserError(
            f"{source}: was not written by save_to_disk: it has neither {DICT_FILE} nor {STATE_FILE}"
        )
    splits, features = describe_saved_dataset(source)
    clips = list_audio_features(features)
    audio, notes = choose_audio_column(clips, list(features), str(source))
    data = ImportedData(notes=notes)
    question = choose_question(set(features) - set(clips), options.name)
    data.add_card(
        options.name,
        load={"hub": str(source.absolute())},
        audio=audio,
        columns=question.columns,
        splits={split: {"name": split} for split in splits},
    )
    data.add_question(options.name, question)
    return data
