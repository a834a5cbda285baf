"""NeMo: manifests of JSON lines with `audio_filepath`, `duration`, `offset` and `text`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

from uniaudio.data.importers.base import (
    ImportedData,
    Importer,
    ImportOptions,
    choose_question,
    find_recording,
    is_evaluated,
    list_skipped_counts,
    list_sources,
    name_splits,
    read_json_rows,
)
from uniaudio.data.sources.tar import IN_ARCHIVE
from uniaudio.errors import UserError

SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")
AUDIO = "audio_filepath"


class NemoImporter(Importer):
    """Manifests, one file or a folder of them; relative paths are relative to the manifest.

    Rows with a `shard_id` have their clips in `audio_<shard_id>.tar`, beside the manifest or in its parent folder.
    """

    source: ClassVar[str] = "a manifest (.json, .jsonl), or a folder of them"

    def read(self, source: Path, options: ImportOptions) -> ImportedData:
        files = name_splits(list_sources(source, SUFFIXES, "manifest"))
        data, skipped, columns = ImportedData(), Counter[str](), Counter[str]()
        seconds = 0.0
        for split, shards in files.items():
            rows = []
            for file in shards:
                for row in read_json_rows(file, skipped):
                    if not isinstance(row.get(AUDIO), str):
                        skipped[f"no {AUDIO}"] += 1
                        continue
                    rest = {name: value for name, value in row.items() if name != AUDIO}
                    rows.append({"audio": locate_nemo_clip(row, file, options.root), **rest})
            if not rows:
                raise UserError(f"{shards[0]}: holds no row with {AUDIO}, so it is no manifest of NeMo")
            columns.update(name for row in rows for name in row)
            if not is_evaluated(split):
                seconds += sum(d for row in rows if isinstance(d := row.get("duration"), int | float))
            data.manifests[f"{options.name}/{split}"] = rows
        question = choose_question(set(columns), options.name)
        data.add_manifest_set(options.name, round(seconds / 3600, 4), question, files)
        data.notes = list_skipped_counts(skipped, "rows")
        return data


def locate_nemo_clip(row: dict[str, Any], file: Path, root: str | None) -> str:
    """Return where the clip of a row is: its file, or the tar of its shard and its name there.

    Raises:
        UserError: when there is no tar of the first shard that is looked for.
    """
    if not isinstance(row.get("shard_id"), int):
        return find_recording(row[AUDIO], file.parent, root)
    folders = [Path(root).expanduser()] if root is not None else [file.parent, file.parent.parent]
    name = f"audio_{row['shard_id']}.tar"
    tar = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if tar is None:
        raise UserError(
            f"{file}: its clips lie in tars (shard_id), but there is no {folders[0] / name}; name their folder with "
            "--root"
        )
    return f"{tar.absolute()}{IN_ARCHIVE}{row[AUDIO]}"
