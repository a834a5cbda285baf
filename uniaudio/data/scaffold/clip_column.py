"""Which column of a manifest or a table names or holds the clips, or how their paths are made of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniaudio.data.column_names import CLIPS, IDS, find_named
from uniaudio.data.sources.folder_walk import is_clip
from uniaudio.data.sources.manifest import read_jsonl, read_table
from uniaudio.data.sources.paths import is_remote
from uniaudio.data.sources.tar import IN_ARCHIVE
from uniaudio.errors import RowError, UserError, convert_to_user_error

LOOKED_AT = 50  # rows of a manifest whose clips are looked for
NEARLY_ALL = 0.9  # of them hold what the column is taken for
FOUND = 0.5  # of their clips are there at least
ENDINGS = ("", ".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a")  # that ids of clips lack


def read_manifest_head(file: Path, is_table: bool) -> list[dict[str, Any]]:
    """Return the first rows of a manifest.

    Raises:
        UserError: when there is none, or the file holds one JSON list.
    """
    read = read_table(file) if is_table else read_jsonl(file)
    rows = [row for row in read[: 2 * LOOKED_AT] if not isinstance(row, RowError)][:LOOKED_AT]
    if not rows:
        raise UserError(f"{file} has no rows; it needs one line per recording")
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
            f"{manifest}: its first line is already a row ({named}); add a header line with the "
            "column names above it, such as audio,label"
        )
    by_value = [name for name in columns if share_of(rows, name, is_clip_name) >= NEARLY_ALL]
    missing, best, most = "", "", 0
    for column in dict.fromkeys((*find_named(columns, CLIPS), *by_value, *find_named(columns, IDS))):
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
                there = f"{len(gone)} of the first {len(rows)} clips named in `{column}` are missing"
                missing = missing or f"{there}, such as {gone[0]}"
        missing = missing or f"`{column}` names {values[0]}, which is not in any folder near it"
    if most >= FOUND * len(rows):
        return best
    if missing:
        raise UserError(f"{manifest}: {missing}; write paths relative to the manifest")
    raise UserError(
        f"{manifest}: no column names the recordings; the columns are "
        f"{', '.join(map(str, columns))}; name the column with their paths `audio`"
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
    return isinstance(value, str) and is_clip(value)


def is_packed_clip(value: Any) -> bool:
    """Return whether a value names a part of a file, a member of an archive, or a URL."""
    if isinstance(value, Mapping):
        return "path" in value or "bytes" in value
    return isinstance(value, str) and (IN_ARCHIVE in value or is_remote(value))


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
        raise UserError(f"{where}: none of its columns {', '.join(columns)} contains audio")
    notes = [f"of the audio columns {', '.join(clips)}, the first is used"] if len(clips) > 1 else []
    return clips[0], notes
