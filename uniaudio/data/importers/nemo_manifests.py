"""NeMo: manifests of JSON lines with `audio_filepath`, `duration`, `offset` and `text`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

from uniaudio.data.importers.base import (
    ImportedData,
    Importer,
    ImportOptions,
    choose_question,
    is_evaluated,
    list_skipped_counts,
    list_sources,
    name_splits,
    read_json_rows,
)
from uniaudio.data.importers.lhotse_cuts import find_recording
from uniaudio.errors import UserError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
AUDIO = "audio_filepath"


class NemoImporter(Importer):
    """Manifests, one file or a folder of them; relative paths are relative to the manifest."""

    source: ClassVar[str] = "a manifest (.json, .jsonl), or a folder of them"

    def read(self, source: Path, options: ImportOptions) -> ImportedData:
        files = name_splits(list_sources(source, SUFFIXES, "manifest"))
        data, skipped, columns = ImportedData(), Counter[str](), Counter[str]()
        seconds = 0.0
        for split, file in files.items():
            rows = []
            for row in read_json_rows(file, skipped):
                if "shard_id" in row:
                    raise UserError(
                        f"{file}: its clips lie in tars (shard_id); give the tars to a card of the kind `webdataset`"
                    )
                if not isinstance(row.get(AUDIO), str):
                    skipped[f"no {AUDIO}"] += 1
                    continue
                rest = {name: value for name, value in row.items() if name != AUDIO}
                rows.append({"audio": find_recording(row[AUDIO], file.parent, options.root), **rest})
            if not rows:
                raise UserError(f"{file}: holds no row with {AUDIO}, so it is no manifest of NeMo")
            columns.update(name for row in rows for name in row)
            if not is_evaluated(split):
                seconds += sum(d for row in rows if isinstance(d := row.get("duration"), int | float))
            data.manifests[f"{options.name}/{split}"] = rows
        question = choose_question(set(columns), options.name)
        data.add_manifest_set(options.name, round(seconds / 3600, 4), question, files)
        data.notes = list_skipped_counts(skipped, "rows")
        return data
