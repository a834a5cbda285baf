"""NeMo: manifests of JSON lines with `audio_filepath`, `duration`, `offset` and `text`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uniaudio.data.importers.base import (
    ImportedData,
    ImportOptions,
    convert_json_lines,
    find_recording,
    list_sources,
)
from uniaudio.data.importers.json_rows import read_json_rows
from uniaudio.data.sources.tar import IN_ARCHIVE
from uniaudio.errors import UserError

AUDIO = "audio_filepath"


def read_nemo_manifests(source: Path, options: ImportOptions) -> ImportedData:
    """Read manifests, one file or a folder of them; relative paths are relative to the manifest.

    Rows with a `shard_id` have their clips in `audio_<shard_id>.tar`, beside the manifest or in its parent folder.
    """
    files = list_sources(source, (".json", ".jsonl", ".json.gz", ".jsonl.gz"), "manifest")
    empty = f"row with {AUDIO}, so it is not a NeMo manifest"
    return convert_json_lines(files, read_nemo_rows, "row", empty, options)


def read_nemo_rows(file: Path, root: str | None, skipped: Counter[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a manifest, see ``convert_json_lines``."""
    for row in read_json_rows(file, skipped):
        if not isinstance(row.get(AUDIO), str):
            skipped[f"no {AUDIO}"] += 1
            continue
        rest = {name: value for name, value in row.items() if name not in (AUDIO, "audio")}
        yield {"audio": locate_nemo_clip(row, file, root), **rest}


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
            f"{file}: its clips are in tars (shard_id), but there is no {folders[0] / name}; name "
            "their folder with --root"
        )
    return f"{tar.absolute()}{IN_ARCHIVE}{row[AUDIO]}"
