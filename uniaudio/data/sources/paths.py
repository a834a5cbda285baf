"""Where files are: places written with braces, globs, folders and URLs."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from glob import glob
from itertools import product
from pathlib import Path

from uniaudio.data.sources.folder_walk import walk_files
from uniaudio.errors import UserError, convert_to_user_error

MOST_PLACES = 1_000_000  # that one text with braces may name
DIGITS = 20  # of the end of a range
BRACES = re.compile(r"\{([^{}]*)\}")
HTTP = ("http://", "https://")
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # schemes to extras of the package
CREDENTIALS = "check that the credentials of the environment or profile are set and still valid"
# compressed tars that are read as they are: suffixes to codecs
CODECS = {".tar.gz": "gzip", ".tgz": "gzip", ".tar.bz2": "bz2", ".tbz2": "bz2", ".tar.zst": "zstd"}
TARS = (".tar", *CODECS)
COMPRESSED = (*CODECS, ".tar.xz", ".txz", ".zip")
PACKED = "compressed archive"
UNPACKED = "compressed archive next to the uncompressed one"
# how the names of parameters begin that sign a URL for a time: S3, Google Cloud Storage
SIGNATURES = ("x-amz-", "x-goog-")
# names of the signature elsewhere, with all that belongs to it: CloudFront and older S3 and Google; Azure
SIGNED_WITH = {
    "signature": {
        *("signature", "expires", "policy", "key-pair-id", "hash-algorithm"),
        *("awsaccesskeyid", "googleaccessid"),
    },
    "sig": {
        *("sig", "sv", "ss", "srt", "sr", "sp", "st", "se", "spr", "sip", "sdd"),
        *("skoid", "sktid", "skt", "ske", "sks", "skv"),
    },
}


def is_remote(place: str) -> bool:
    return "://" in place


def read_size(place: str) -> int | None:
    """Return the bytes of a local file; None for a URL, or where there is no file any more."""
    try:
        return None if is_remote(place) else os.stat(place).st_size
    except OSError:
        return None


def find_codec(place: str) -> str | None:
    """Return the codec of a compressed tar by its suffix; None for any other file or URL."""
    name = place.partition("?")[0].lower() if is_remote(place) else place.lower()
    return next((codec for suffix, codec in CODECS.items() if name.endswith(suffix)), None)


def expand_braces(text: str) -> list[str]:
    """Return the texts of ``a-{000..012}.tar`` or ``{dev,test}.tar``; digits keep their width.

    Raises:
        UserError: for braces that hold neither a range nor a list.
    """
    too_many = f"{shorten_place(text)}: names more than {MOST_PLACES:,} files"
    choices: list[list[str]] = []
    for inside in BRACES.findall(text):
        first, dots, last = inside.partition("..")
        if dots and max(len(first), len(last)) > DIGITS:
            raise UserError(too_many)
        if dots and first.isdecimal() and last.isdecimal() and int(first) <= int(last):
            if int(last) - int(first) >= MOST_PLACES:
                raise UserError(too_many)
            # as shells do: with a leading zero, all numbers are as wide as the wider end
            is_padded = any(end.startswith("0") and end != "0" for end in (first, last))
            width = max(len(first), len(last)) if is_padded else 0
            choices.append([str(i).zfill(width) for i in range(int(first), int(last) + 1)])
        elif "," in inside:
            choices.append(inside.split(","))
        else:
            raise UserError(
                f"{text}: {{{inside}}} is neither a range such as {{000..012}} nor a list {{a,b}}"
            )
    if math.prod(map(len, choices)) > MOST_PLACES:
        raise UserError(too_many)
    parts = BRACES.split(text)[::2]
    return [
        "".join(x for pair in zip(parts, (*chosen, ""), strict=True) for x in pair)
        for chosen in product(*choices)
    ]


def shorten_place(text: str) -> str:
    """Return the beginning of a place for a message."""
    return text if len(text) <= 200 else f"{text[:200]}..."


def expand_places(
    places: Sequence[str], suffixes: tuple[str, ...], where: str, left_out: Counter[str] | None = None
) -> list[str]:
    """Return files and URLs in a stable order: braces and globs expanded, folders searched for the suffixes.

    Args:
        suffixes: of the files, the usual one first.
        left_out: is counted what folders and globs hold besides, by reason.

    Raises:
        UserError: for a local place that does not exist or holds no such file, for a compressed archive, and for a URL
            that cannot be read.
    """
    left_out = Counter() if left_out is None else left_out
    files_found: list[str] = []
    for place in (place for text in places for place in expand_braces(text)):
        if is_remote(place):
            check_url(place, where)
            is_listed = not place.startswith(HTTP) and ("*" in place or place.endswith("/"))
            files_found += list_remote_files(place, suffixes, where) if is_listed else [place]
            continue
        matched = [place] if Path(place).exists() else sorted(glob(place, recursive=True))
        files = [file for path in matched for file in list_files(path, suffixes, left_out)]
        typed = [file for file in files if file.lower().endswith(suffixes)]
        if typed and len(matched) > 1:  # a README beside the shards that a pattern finds
            left_out[f"no {suffixes[0]} file"] += len(files) - len(typed)
            files = typed
        if len(files) > 1:
            files = leave_packed_copies(files, left_out)
        if not files:
            packed = f"; {left_out[PACKED]} are compressed; decompress them first" if left_out[PACKED] else ""
            raise UserError(f"{where}: there is no {suffixes[0].removeprefix('.')} file at {place}{packed}")
        for file in files:
            if file.lower().endswith(COMPRESSED) and not file.lower().endswith(suffixes):
                raise UserError(
                    f"{where}: {file} has an unsupported compression; decompress it and name the "
                    f"{suffixes[0]} file"
                )
        files_found += files
    return list(dict.fromkeys(files_found))  # two patterns may find the same file; its rows come once


def leave_packed_copies(files: Sequence[str], left_out: Counter[str]) -> list[str]:
    """Return the files without the compressed tars that lie beside the unpacked ones: their rows would come twice."""
    unpacked = {file.lower() for file in files}
    kept = [
        file
        for file in files
        if find_codec(file) is None or f"{strip_suffix(file)}.tar".lower() not in unpacked
    ]
    if len(kept) < len(files):
        left_out[UNPACKED] += len(files) - len(kept)
    return kept


def strip_suffix(place: str) -> str:
    """Return a path without the suffix of its file, both parts of ``.tar.gz``."""
    if is_remote(place):
        place = place.partition("?")[0]  # what follows may be a signature
    if place.lower().endswith(tuple(CODECS)):
        return place[: -len(next(suffix for suffix in CODECS if place.lower().endswith(suffix)))]
    folder, slash, name = place.rpartition("/")
    stem, _, suffix = name.rpartition(".")
    return f"{folder}{slash}{stem}" if stem and suffix else place


def strip_signature(url: str) -> str:
    """Return a URL without the parameters that sign it for a time: a new signature leads to the same file."""
    address, mark, query = url.partition("?")
    stated = [parameter.partition("=")[0].lower() for parameter in query.split("&")]
    signing = {name for name in stated if name.startswith(SIGNATURES)}
    for sign, others in SIGNED_WITH.items():
        signing |= others if sign in stated else set()
    kept = [text for text, name in zip(query.split("&"), stated, strict=True) if name not in signing]
    return f"{address}{mark if kept else ''}{'&'.join(kept)}"


def list_files(place: str, suffixes: tuple[str, ...], left_out: Counter[str]) -> list[str]:
    """Return a file, or the files with one of the suffixes in a folder, in order."""
    if not os.path.isdir(place):
        return [place]
    files_found = []
    for file in sorted(map(str, walk_files(Path(place), left_out)), key=lambda file: file.split("/")):
        name = file.lower()
        if name.endswith(suffixes):
            files_found.append(file)
        else:
            left_out[PACKED if name.endswith(COMPRESSED) else f"no {suffixes[0]} file"] += 1
    return files_found


def check_url(url: str, where: str) -> None:
    """Refuse, before anything is read, a URL of which nothing could be read later.

    Raises:
        UserError: for a pattern over http, and for a scheme that nothing installed can read.
    """
    if url.startswith(HTTP):
        if "*" in url:
            raise UserError(
                f"{where}: {url}: files on a web server cannot be listed; write {{0000..0012}} instead of *"
            )
        return
    import fsspec  # only for its schemes

    scheme = url.partition("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as problem:
        fix = f"; pip install 'uniaudio[{EXTRAS[scheme]}]'" if scheme in EXTRAS else ""
        raise UserError(f"{where}: {url} needs a package that is not installed ({problem}){fix}") from problem
    except ValueError as problem:
        raise UserError(f"{where}: {url} cannot be read ({problem})") from problem


def list_remote_files(url: str, suffixes: tuple[str, ...], where: str) -> list[str]:
    """Return the files of an object store that a pattern (``*``) or a folder (with ``/`` at its end) holds, in order.

    Raises:
        UserError: when it cannot be listed, or holds no file with one of the suffixes.
    """
    import fsspec

    with convert_to_user_error(f"{where}: {url} cannot be listed", CREDENTIALS):
        store, path = fsspec.url_to_fs(url)
        try:
            listed = store.glob(path) if "*" in url else store.find(path)
        except FileNotFoundError as problem:  # stores give their own name of the folder as the reason
            raise FileNotFoundError("there is no such bucket or folder") from problem
        urls = sorted(store.unstrip_protocol(file) for file in listed)
    files = [file for file in urls if file.lower().endswith(suffixes)]
    if not files:
        raise UserError(f"{where}: there is no {suffixes[0].removeprefix('.')} file at {url}")
    return files


def join_place(folder: str, file: str) -> str:
    """Return where a file below a folder or URL is; a full path or URL stays as it is."""
    return file if is_remote(file) or file.startswith("/") else f"{folder.rstrip('/')}/{file}"


def strip_common_folders(places: Sequence[str]) -> list[list[str]]:
    """Return the parts of each path below the folders that all have in common."""
    parts = [place.split("/") for place in places]
    common = 0
    for level in zip(*(path[:-1] for path in parts), strict=False):  # as deep as the least deep of them
        if len(set(level)) > 1:
            break
        common += 1
    return [path[common:] for path in parts]


def shorten_names(places: Sequence[str]) -> list[str]:
    """Return the names of files without suffix; those of all with their folders where some are alike."""
    stems = [strip_suffix(place).rpartition("/")[2] for place in places]
    if len(set(stems)) == len(stems):
        return stems
    return ["/".join((*path[:-1], strip_suffix(path[-1]))) for path in strip_common_folders(places)]
