"""What the files behind shards hold, as far as a moment tells: compared on a resume, beyond names, sizes and rows.

Only what is known on both sides is compared. So a server need not state lengths, and states of earlier versions, which
hold nothing of this, go on. Fingerprints (``RowSource.fingerprint``) hold what is always known.

Of a file at an http(s) URL, its length is compared and neither ETag nor date: mirrors of one file often state others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from uniaudio.data.mixture import Mixture
from uniaudio.data.sources.base import ShardedSource
from uniaudio.data.sources.file_fingerprints import ENDS, hash_ends, name_places
from uniaudio.data.sources.http import fetch_length
from uniaudio.data.sources.paths import HTTP, is_remote

# by entry of a recipe: of each file in order, None where not known
Contents = Mapping[str, Sequence[str | None]]
# by entry of a recipe: when each file was last written, in seconds since 1970, None where not known
Times = Mapping[str, Sequence[int | None]]

AT_ONCE = 16  # files that are looked at
LONGEST = 10.0  # seconds, after which the rest of the files stays unknown
LONGEST_ANSWER = 5.0  # seconds for the answer of a server


def describe_contents(mixture: Mixture) -> dict[str, list[str | None]]:
    """Return what is known of the content of each entry's files, in their order; several are looked at at once."""
    files = list_compared_files(mixture)
    places = list(dict.fromkeys(place for listed in files.values() for place in listed))
    describe = partial(describe_content, until=time.monotonic() + LONGEST)
    with ThreadPoolExecutor(AT_ONCE) as pool:  # its threads have ended before workers are forked
        contents = dict(zip(places, pool.map(describe, places), strict=True))
    return {name: [contents[place] for place in listed] for name, listed in files.items()}


def list_compared_files(mixture: Mixture) -> dict[str, Sequence[str]]:
    """Return the files and URLs of each entry whose content no fingerprint holds."""
    entries = zip(mixture.recipe.train, mixture.sources, strict=True)
    files = {
        entry.name: source.list_files() for entry, source in entries if isinstance(source, ShardedSource)
    }
    return {name: places for name, places in files.items() if places}


def describe_content(place: str, until: float) -> str | None:
    """Return a hash of both ends of a local file, or the length of one at an http(s) URL; None where it is not known.

    Args:
        until: (monotonic) when nothing more is looked at.
    """
    left = until - time.monotonic()
    if left <= 0:
        return None
    if place.startswith(HTTP):
        length = fetch_length(place, min(left, LONGEST_ANSWER))
        return None if length is None else str(length)
    return None if is_remote(place) else hash_ends(place) or None


def read_write_times(mixture: Mixture) -> dict[str, list[int | None]]:
    """Return when the local files of each entry were last written, in their order; None for files by URL.

    In whole seconds, which every file system keeps when files are moved with their times.
    """
    return {
        name: [read_write_time(place) for place in places]
        for name, places in list_compared_files(mixture).items()
    }


def read_write_time(place: str) -> int | None:
    """Return when a local file was last written; None where that is not known."""
    try:
        return None if is_remote(place) else int(os.stat(place).st_mtime)
    except OSError:
        return None


def describe_rewritten_files(mixture: Mixture, before: Times, now: Times) -> list[str]:
    """Return a sentence for each dataset with files that were written since a checkpoint and look the same.

    Such files are not refused: a copy has another time, too. What lies between their ends is not compared.

    Args:
        before, now: of the same files.
    """
    sentences = []
    for entry in mixture.recipe.train:
        files = list_compared_files(mixture).get(entry.name, ())
        times = zip(files, before.get(entry.name, ()), now.get(entry.name, ()), strict=False)
        written = [file for file, then, today in times if None not in (then, today) and then != today]
        if written:
            more = f" and {len(written) - 1:,} more of {len(files):,} files have" if written[1:] else " has"
            sentences.append(
                f"dataset {entry.dataset.name}: {written[0]}{more} been written since the checkpoint, or copied; sizes "
                "and both ends are the same, what lies between them is not compared"
            )
    return sentences


def explain_change(mixture: Mixture, before: Contents, now: Contents) -> str:
    """Return which file is another one than at a checkpoint; empty where all that both sides know is the same.

    Args:
        before: of the same files.
    """
    datasets = {entry.name: entry.dataset.name for entry in mixture.recipe.train}
    for name, places in list_compared_files(mixture).items():
        for place, then, today in zip(places, before.get(name, ()), now[name], strict=False):
            if then is not None and today is not None and then != today:
                return (
                    f"dataset {datasets[name]}: {describe_change(place, then, today)}: put it back as it was, or start "
                    "a new run from the checkpoint's weights"
                )
    return ""


def describe_change(place: str, before: str, now: str) -> str:
    """Return what is different in a file, given its contents as ``describe_content`` returns them."""
    if is_remote(place):
        return f"{name_places([place])[0]} is not what it was at the checkpoint ({now} bytes instead of {before})"
    return f"{place} is not what it was at the checkpoint (the first or last {ENDS >> 10} KiB changed)"


def merge_contents(before: Contents, now: Contents) -> dict[str, list[str | None]]:
    """Return what is known now, and of the files of which nothing is, what was known before; both of the same files."""
    return {
        name: [
            today or then
            for then, today in zip(before.get(name, [None] * len(contents)), contents, strict=True)
        ]
        for name, contents in now.items()
    }
