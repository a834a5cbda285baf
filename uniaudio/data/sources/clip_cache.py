"""Whole clips on disk by their URL, up to a limit: those that were not used for longest go first."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from contextlib import suppress
from io import FileIO
from pathlib import Path

from uniaudio.config.path_variables import get_cache_root
from uniaudio.units import GIB

CACHE_GIB = 20.0  # of all clips on disk, where UNIAUDIO_CLIP_CACHE_GIB does not say
SHRINK_EVERY = 200  # clips that a process stores before it looks again at how large the cache is
STORED = itertools.count()  # clips that this process has stored


def locate_in_cache(url: str) -> Path:
    """Return where the file of a URL is kept: ``$UNIAUDIO_CACHE/clips/AB/HASH``."""
    digest = hashlib.blake2b(url.encode(errors="surrogatepass"), digest_size=20).hexdigest()
    return get_cache_root() / "clips" / digest[:2] / digest


def open_cached_clip(url: str) -> FileIO | None:
    """Return a clip that is in the cache, and note that it was used."""
    path = locate_in_cache(url)
    try:
        file = FileIO(path)
    except OSError:
        return None
    with suppress(OSError):
        os.utime(path)
    return file


def read_cache_limit() -> float:
    """Return the bytes that clips may take on disk; 0 where the variable holds no number, so that nothing is kept."""
    stated = os.environ.get("UNIAUDIO_CLIP_CACHE_GIB")
    try:
        return (CACHE_GIB if stated is None else float(stated)) * GIB
    except ValueError:
        return 0.0


def store_clip(url: str, data: bytes) -> bool:
    """Keep a clip on disk; return whether that was possible, for a full or read-only disk is no reason to stop."""
    limit = read_cache_limit()
    if len(data) > limit / 4:
        return False
    path = locate_in_cache(url)
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        return False
    if next(STORED) % SHRINK_EVERY == 0:
        shrink_cache(path.parent.parent, limit)
    return True


def shrink_cache(folder: Path, limit: float) -> None:
    """Delete the clips that were not used for longest, until the rest take nine tenths of the limit."""
    files: list[tuple[float, int, Path]] = []
    for path in folder.glob("*/*"):
        with suppress(OSError):
            facts = path.stat()
            files.append((facts.st_mtime, facts.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= limit:
        return
    for _, size, path in sorted(files):
        if total <= 0.9 * limit:
            return
        with suppress(OSError):
            path.unlink()
        total -= size
