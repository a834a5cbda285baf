"""Folders of clips on the Hub: listed at once, described by metadata files, and each clip fetched alone."""

from __future__ import annotations

import io
import posixpath
import tempfile
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.audiofolder import iterate_folder_rows
from uniaudio.data.sources.base import BrokenShardError, hash_values
from uniaudio.data.sources.folder_metadata import METADATA, MetadataRow, read_metadata
from uniaudio.data.sources.folder_walk import is_clip
from uniaudio.data.sources.http import BLOCK, HttpStream
from uniaudio.data.sources.hub_repository import HubFile, HubRepository
from uniaudio.data.sources.in_memory import ListedSource
from uniaudio.data.sources.paths import is_remote
from uniaudio.data.sources.split_files import choose_split_folders
from uniaudio.errors import RowError, UserError
from uniaudio.hub_client import call_hub, convert_hub_errors


class HubFolderSource(ListedSource):
    """The clips of a split, with the columns of ``AudioFolderSource``.

    The first row costs a request for the description of the repository, one for each metadata file, and the clip's.

    Args:
        files: of the split. what: begins the sentence of an error.
    """

    def __init__(
        self, card: DatasetCard, split: str, repository: HubRepository, files: Sequence[HubFile], what: str
    ) -> None:
        self.repository = repository
        root = find_split_root([file.path for file in files if is_clip(file.path)], card.split(split).name)
        clips = {str(PurePosixPath(file.path).relative_to(root)) for file in files if is_clip(file.path)}
        metadata = list_metadata(repository, files, root)
        described, errors = self.fetch_metadata(card, root, metadata, clips, what)
        self.root, self.used = root, [*files, *metadata]
        self.left_out["file that is not a clip"] += sum(
            not is_clip(file.path) and not is_metadata(file.path) for file in files
        )
        rows = iterate_folder_rows(card, clips, described, errors, self.left_out, {})
        super().__init__(card, split, rows, Path())

    def fetch_metadata(
        self, card: DatasetCard, root: str, metadata: Sequence[HubFile], clips: Collection[str], what: str
    ) -> tuple[list[MetadataRow], list[RowError]]:
        """Read metadata files as ``read_metadata`` does, each with one request.

        Raises:
            UserError: when one cannot be had or read.
        """
        with tempfile.TemporaryDirectory() as place:
            for file in metadata:
                with convert_hub_errors(what, self.repository.name, self.repository.commit, "dataset"):
                    content = call_hub(partial(self.read_file, file, card.load.timeout))
                target = Path(place) / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            files = [Path(place) / file.path for file in metadata]
            try:
                return read_metadata(card, Path(place) / root, files, clips, self.left_out)
            except UserError as problem:
                raise UserError(str(problem).replace(f"{place}/", f"{self.repository.name}/")) from problem

    def read_file(self, file: HubFile, timeout: float) -> bytes:
        """Return the content of a small file.

        Raises:
            UserError: when the Hub refuses it. OSError: when another try may help.
        """
        url = self.repository.make_url(file.path)
        try:
            with io.BufferedReader(HttpStream(url, 0, timeout), BLOCK) as stream:
                return stream.read()
        except BrokenShardError as problem:
            raise UserError(f"{self.repository.name}: {problem}") from problem

    def fingerprint(self, columns: Collection[str]) -> str:
        return hash_values([(file.path, file.hash) for file in self.used])

    def locate_clip(self, value: Any) -> Any:
        """Return the address of a clip that a row names.

        Raises:
            RowError: when the repository has no such file, which needs no request.
        """
        if not isinstance(value, str) or is_remote(value):
            return value
        path = posixpath.normpath(posixpath.join(self.root, value))
        if path not in self.repository.files:
            raise RowError("missing file", f"{self.repository.name} holds no {path}")
        return self.repository.make_url(path)


def is_metadata(path: str) -> bool:
    return PurePosixPath(path).name in METADATA


def find_split_root(clips: Sequence[str], split: str) -> str:
    """Return the folder of a split: the deepest that names it, else the deepest that has all its clips."""
    common = posixpath.commonpath([PurePosixPath(path).parent for path in clips]).split("/")
    named = [number for number, name in enumerate(common) if name in choose_split_folders(common, split)]
    return "/".join(common[: named[-1] + 1] if named else common)


def list_metadata(repository: HubRepository, files: Sequence[HubFile], root: str) -> list[HubFile]:
    """Return the metadata files that speak of a split: its own, and those of folders with its clips and above."""
    folders = {folder for file in files for folder in PurePosixPath(file.path).parents}
    folders |= {PurePosixPath(root), *PurePosixPath(root).parents}
    listed = [*files, *repository.files.values()]
    return list(
        {
            file.path: file
            for file in listed
            if is_metadata(file.path) and PurePosixPath(file.path).parent in folders
        }.values()
    )
