"""Files in tars that a row names by archive and member: where they lie, so that nothing is unpacked."""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from uniaudio.data.encoded_audio import FilePart
from uniaudio.errors import RowError

IN_ARCHIVE = "::"  # between the path of a tar and the name of a file in it


@lru_cache(maxsize=64)
def list_archive_members(archive: Path) -> Mapping[str, FilePart]:
    """Return where the files of a tar lie, by their names: those before the damage, where there is some."""
    members_by_name: dict[str, FilePart] = {}
    with contextlib.suppress(OSError, tarfile.TarError), tarfile.open(archive, "r:") as tar:
        for member in tar:
            if member.isfile():
                members_by_name[member.name] = FilePart(archive, member.offset_data, member.size)
    return members_by_name


def find_archive_member(archive: Path, member: str) -> FilePart:
    """Return where a file of a tar lies; nothing is unpacked.

    Raises:
        RowError: when there is no such archive or file in it.
    """
    if not archive.is_file():
        raise RowError("missing file", str(archive))
    members = list_archive_members(archive)
    if member not in members:
        raise RowError("missing file", f"{archive} holds no {member} (or is damaged before it)")
    return members[member]
