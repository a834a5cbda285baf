"""The memory allocator of a training process on a CPU: glibc's becomes slow, others do not."""

from __future__ import annotations

import os
import re
from pathlib import Path

MAPS = Path("/proc/self/maps")  # the files that this process has loaded, one per line
FOLDERS = (Path("/usr/lib"), Path("/usr/local/lib"), Path("/usr/lib64"))
REPLACEMENTS = re.compile(r"/lib(jemalloc|tcmalloc|mimalloc)[^/]*$", re.MULTILINE)
# a run that is shorter ends before it is slow
LONG_RUN = 200  # steps


def recommend_allocator(device: str, steps: int | None, maps: Path = MAPS) -> str | None:
    """Return a sentence for a long run on a CPU whose memory comes from glibc, else None.

    PyTorch asks for memory at multiples of 64 bytes. glibc splits larger pieces for that, which do not grow together
    again (sourceware.org, bug 14581); when clips differ in length, each step leaves more pieces, and finding one that
    is large enough takes most of the time after some hundred steps (figures: docs/performance.md).

    Args:
        device: type of the one that is trained on, such as ``cpu``.
        steps: of the run; None where hours of audio end it.
        maps: the loaded files, as Linux lists them.
    """
    short = steps is not None and steps < LONG_RUN
    if device != "cpu" or short or not uses_glibc(maps):
        return None
    library = find_jemalloc()
    if library is None:
        how = "install jemalloc (Debian and Ubuntu: libjemalloc2) and set LD_PRELOAD to its libjemalloc.so.2"
    else:
        how = f"LD_PRELOAD={library} uniaudio train ..."
    return f"on a CPU, glibc's memory allocator can make a long run two to three times slower; to avoid that: {how}"


def uses_glibc(maps: Path) -> bool:
    """Return whether memory comes from glibc: not on macOS or musl, nor with another allocator preloaded."""
    if "CS_GNU_LIBC_VERSION" not in os.confstr_names or not maps.is_file():
        return False
    return REPLACEMENTS.search(maps.read_text()) is None


def find_jemalloc(folders: tuple[Path, ...] = FOLDERS) -> Path | None:
    """Return the installed jemalloc: in a folder of libraries, or in that of an architecture within it."""
    for folder in folders:
        for pattern in ("libjemalloc.so.2", "*-linux-gnu/libjemalloc.so.2"):
            for library in sorted(folder.glob(pattern)):
                return library
    return None
