"""What tells whether local files are still the same, wherever they lie and without reading all of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

from uniaudio.data.sources.folder_walk import is_clip
from uniaudio.data.sources.paths import is_remote, read_size, strip_common_folders, strip_signature

ENDS = 1 << 16  # bytes at the beginning and at the end of a table, where Parquet files have their statistics


def name_places(places: Sequence[str]) -> list[str]:
    """Return URLs without signatures, and local files by their paths below the folders that all of them have in common.

    So sets that differ in the name of such a folder alone have the same names: they count as one set that was moved.
    """
    names = iter(["/".join(path) for path in strip_common_folders([p for p in places if not is_remote(p)])])
    return [strip_signature(place) if is_remote(place) else next(names) for place in places]


def describe_files(files: Sequence[str]) -> list[tuple[str, int | None, str]]:
    """Return name, size in bytes and a hash of both ends of each file; no hash for URLs and clips.

    Clips may be very many, and are not looked at in other sources either.
    """
    names = name_places(files)
    return [
        (name, read_size(file), "" if is_remote(file) or is_clip(file) else hash_ends(file))
        for name, file in zip(names, files, strict=True)
    ]


def hash_ends(file: str) -> str:
    """Return a hash of the first and the last ``ENDS`` bytes of a file; empty where it cannot be read."""
    try:
        with open(file, "rb") as stream:
            digest = hashlib.blake2b(stream.read(ENDS), digest_size=16)
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - ENDS))
            digest.update(stream.read())
    except OSError:
        return ""
    return digest.hexdigest()
