"""Folders that `save_to_disk` of `datasets` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from uniaudio.data.importers.base import ImportedData, Importer, ImportOptions, choose_question
from uniaudio.data.sources.saved_datasets import DICT_FILE, STATE_FILE, is_saved_dataset
from uniaudio.errors import UserError, convert_to_user_error


class SavedFolderImporter(Importer):
    """A `DatasetDict` or a `Dataset` on disk: columns and splits as its features name them."""

    source: ClassVar[str] = "a folder that save_to_disk wrote"

    def read(self, source: Path, options: ImportOptions) -> ImportedData:
        if not is_saved_dataset(source):
            raise UserError(
                f"{source}: is no folder of save_to_disk: it has neither {DICT_FILE} nor {STATE_FILE}"
            )
        with convert_to_user_error(f"{source}: cannot be read"):
            splits, folder = ["train"], source
            if (source / DICT_FILE).is_file():
                splits = list(json.loads((source / DICT_FILE).read_text(encoding="utf-8"))["splits"])
                folder = source / splits[0]
            features: dict[str, Any] = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[
                "features"
            ]
        clips = [
            name for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "Audio"
        ]
        if not clips:
            raise UserError(f"{source}: none of its columns {', '.join(features)} is of the kind Audio")
        data = ImportedData()
        if len(clips) > 1:
            data.notes.append(f"of the audio columns {', '.join(clips)} the first is used")
        question = choose_question(set(features) - set(clips), options.name)
        data.add_card(
            options.name,
            load={"hub": str(source.absolute())},
            audio=clips[0],
            columns=question.columns,
            splits={split: {"name": split} for split in splits},
        )
        if question.content is not None:
            data.templates[question.template] = question.content
        data.add_lines(options.name, question.template)
        return data
