"""Repositories of a Hub as plain folders: commits, revisions and listings."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import yaml

SUFFIXES = (
    ".7z .arrow .bin .bz2 .flac .gz .h5 .m4a .model .mp3 .npy .npz .ogg .onnx .opus .parquet .pt .pth .safetensors "
    ".tar .tgz .wav .xz .zip .zst"
)
LARGE_SUFFIXES = tuple(SUFFIXES.split())
LARGE_BYTES = 10 * 2**20
COMMIT = re.compile(r"[0-9a-f]{40}")
FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(\n|\Z)", re.DOTALL)
HIDDEN = (".git", ".cache")


@dataclass(frozen=True)
class StoredFile:
    """A file of a commit.

    Args:
        path: within the repository. blob: git's SHA-1 of the content. sha256: of the content, of files in LFS alone.
    """

    path: str
    place: Path
    size: int
    blob: str
    sha256: str | None

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob

    def describe(self) -> dict[str, Any]:
        """Return the entry of the ``tree`` endpoint."""
        entry: dict[str, Any] = {"type": "file", "oid": self.blob, "size": self.size, "path": self.path}
        if self.sha256 is not None:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry

    def describe_sibling(self, blobs: bool) -> dict[str, Any]:
        """Return the entry of the list of files in the description of a repository."""
        entry: dict[str, Any] = {"rfilename": self.path}
        if blobs:
            entry |= {"size": self.size, "blobId": self.blob}
            if self.sha256 is not None:
                entry["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass(frozen=True)
class Commit:
    """A state of a repository: its hash is a function of the paths and contents of its files."""

    sha: str
    files: dict[str, StoredFile]

    def list_tree(self, folder: str, recursive: bool) -> list[dict[str, Any]] | None:
        """Return the entries below a folder in the order of their paths; None where there is no such folder."""
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, file in self.files.items():
            if not path.startswith(prefix):
                continue
            parts = path[len(prefix) :].split("/")
            for depth in range(1, len(parts)):
                name = prefix + "/".join(parts[:depth])
                if depth == 1 or recursive:
                    entries[name] = {"type": "directory", "oid": hash_text(name), "size": 0, "path": name}
            if len(parts) == 1 or recursive:
                entries[path] = file.describe()
        return [entries[path] for path in sorted(entries)] if entries or not folder else None

    def describe_path(self, path: str) -> dict[str, Any] | None:
        """Return the entry of one file or folder."""
        if path in self.files:
            return self.files[path].describe()
        if any(name.startswith(f"{path}/") for name in self.files):
            return {"type": "directory", "oid": hash_text(path), "size": 0, "path": path}
        return None


def hash_text(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()


class Hashes:
    """Hashes of files, remembered as long as size and time of change stay as they are."""

    def __init__(self) -> None:
        self.known: dict[Path, tuple[tuple[int, int], str, str]] = {}
        self.by_sha256: dict[str, Path] = {}
        self.lock = threading.Lock()

    def read(self, place: Path) -> tuple[int, str, str]:
        """Return size, git's SHA-1 and SHA-256 of a file."""
        facts = place.stat()
        state = (facts.st_size, facts.st_mtime_ns)
        with self.lock:
            known = self.known.get(place)
            if known is None or known[0] != state:
                content = place.read_bytes()
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                known = (state, blob, hashlib.sha256(content).hexdigest())
                self.known[place] = known
                self.by_sha256[known[2]] = place
        return facts.st_size, known[1], known[2]


class Repositories:
    """``FOLDER/models/OWNER/NAME`` and ``FOLDER/datasets/OWNER/NAME``, each a plain folder.

    The folder is the branch ``main``. A folder ``NAME@REVISION`` beside it is another branch or tag, its slashes
    written ``%2F``: ``NAME@refs%2Fconvert%2Fparquet``. The hash of any of them is a revision, too.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.hashes = folder, Hashes()

    def find(self, kind: str, name: str) -> Path | None:
        """Return the folder of a repository.

        Args:
            kind: ``models`` or ``datasets``.
        """
        place = self.folder / kind / name
        if ".." in name or "@" in name or not place.is_dir():
            return None
        is_owner = "/" not in name and not any(path.is_file() for path in place.iterdir())
        return None if is_owner else place

    def list_names(self, kind: str) -> list[str]:
        """Return the names of all repositories of a kind."""
        places = (self.folder / kind).glob("*/*")
        return sorted(f"{p.parent.name}/{p.name}" for p in places if p.is_dir() and "@" not in p.name)

    def list_revisions(self, place: Path) -> dict[str, Path]:
        """Return the folders of all branches and tags of a repository."""
        others = place.parent.glob(f"{place.name}@*")
        return {"main": place} | {unquote(path.name.partition("@")[2]): path for path in others}

    def find_commit(self, place: Path, revision: str) -> Commit | None:
        """Return a commit by branch, tag or hash."""
        revisions = self.list_revisions(place)
        if revision in revisions:
            return self.read_commit(revisions[revision])
        if COMMIT.fullmatch(revision):
            commits = map(self.read_commit, revisions.values())
            return next((commit for commit in commits if commit.sha == revision), None)
        return None

    def read_commit(self, place: Path) -> Commit:
        """Read the present state of a folder."""
        files = {}
        for file in sorted(walk_files(place)):
            path = file.relative_to(place).as_posix()
            size, blob, sha256 = self.hashes.read(file)
            large = path.lower().endswith(LARGE_SUFFIXES) or size > LARGE_BYTES
            files[path] = StoredFile(path, file, size, blob, sha256 if large else None)
        listing = "\n".join(f"{path} {file.blob}" for path, file in files.items())
        return Commit(hash_text(f"{place.parent.name}/{place.name.partition('@')[0]}\n{listing}"), files)

    def create(self, kind: str, name: str) -> Path:
        place = self.folder / kind / name
        place.mkdir(parents=True)
        return place

    def create_revision(self, place: Path, revision: str, start: Path) -> None:
        shutil.copytree(start, place.with_name(f"{place.name}@{quote(revision, safe='')}"))


def walk_files(folder: Path) -> Iterator[Path]:
    """Yield all files below a folder, those of git and of download caches left out; links are followed."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name not in HIDDEN]
        yield from (Path(place, name) for name in names)


def read_card_data(commit: Commit) -> dict[str, Any]:
    """Return the metadata at the top of a repository's README.md."""
    readme = commit.files.get("README.md")
    matched = FRONT_MATTER.match(readme.place.read_text("utf-8")) if readme else None
    data = yaml.safe_load(matched[1]) if matched else None
    return data if isinstance(data, dict) else {}
