"""Where files are: places written with braces, globs and folders, and which of them belong to a split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from glob import glob
from itertools import product
from pathlib import Path

from uniaudio.data.card import DatasetCard
from uniaudio.errors import UserError

BRACES = re.compile(r"\{([^{}]*)\}")
SPLIT = "{split}"  # in a place: the stored split's name
ONLY_SPLIT = "train"  # the name of the split where the stored data know no splits; also a card's default
HTTP = ("http://", "https://")


def is_remote(place: str) -> bool:
    return "://" in place


def expand_braces(text: str) -> list[str]:
    """Return the texts of ``a-{000..012}.tar`` or ``{dev,test}.tar``; digits keep their width.

    Raises:
        UserError: for braces that hold neither a range nor a list.
    """
    choices: list[list[str]] = []
    for inside in BRACES.findall(text):
        first, dots, last = inside.partition("..")
        if dots and first.isdigit() and last.isdigit() and int(first) <= int(last):
            choices.append([str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)])
        elif "," in inside:
            choices.append(inside.split(","))
        else:
            raise UserError(
                f"{text}: {{{inside}}} is neither a range such as {{000..012}} nor a list {{a,b}}"
            )
    parts = BRACES.split(text)[::2]
    return [
        "".join(x for pair in zip(parts, (*chosen, ""), strict=True) for x in pair)
        for chosen in product(*choices)
    ]


def expand_places(places: Sequence[str], suffix: str, where: str) -> list[str]:
    """Return files and URLs in a stable order: braces and globs expanded, folders searched for ``suffix``.

    Raises:
        UserError: for a local place that does not exist or holds no such file, and for a URL that cannot be read.
    """
    found: list[str] = []
    for place in (place for text in places for place in expand_braces(text)):
        if is_remote(place):
            check_url(place, where)
            found.append(place)
            continue
        path = Path(place)
        files = [str(p) for p in sorted(path.rglob(f"*{suffix}"))] if path.is_dir() else sorted(glob(place))
        files = files or ([place] if path.is_file() else [])  # a name may hold the signs of a glob
        if not files:
            raise UserError(f"{where}: there is no {suffix.removeprefix('.')} file at {place}")
        found += files
    return list(dict.fromkeys(found))  # two patterns may find the same file; its rows come once


def check_url(url: str, where: str) -> None:
    """Refuse, before anything is read, a URL of which nothing could be read later.

    Raises:
        UserError: for a pattern, and for a scheme that nothing installed can read.
    """
    if "*" in url:
        raise UserError(
            f"{where}: {url}: files of a URL cannot be looked up; write {{0000..0012}} instead of *"
        )
    if url.startswith(HTTP):
        return
    import fsspec  # only for its schemes

    try:
        fsspec.get_filesystem_class(url.partition("://")[0])
    except (ImportError, ValueError) as problem:
        raise UserError(f"{where}: {url} cannot be read ({problem})") from problem


def files_of_split(card: DatasetCard, split: str, suffix: str) -> list[str]:
    """Return the files and URLs of a split, in a stable order.

    ``{split}`` in a place stands for the stored split's name. Without it, files whose name begins with the stored
    split's name (``train-00000.tar``), or that lie in a folder of this name, are the split; where no file bears
    it, all of them are the split ``train``.

    Raises:
        UserError: for a place that does not exist or cannot be read, and for a split that no file bears.
    """
    name, where = card.split(split).name, f"{card.path}: load.{card.load.kind}"
    found = expand_places([place.replace(SPLIT, name) for place in card.load.places], suffix, where)
    if any(SPLIT in place for place in card.load.places):
        return found
    own = [place for place, parts in zip(found, below_common(found), strict=True) if bears(parts, name)]
    if not own:
        refuse_other_splits(card, split)
    return own or found


def refuse_other_splits(card: DatasetCard, split: str) -> None:
    """Refuse a stored split that is not there, for all rows would quietly be in every split.

    Raises:
        UserError: unless the split is the one that data without splits have.
    """
    name = card.split(split).name
    if name != ONLY_SPLIT:
        raise UserError(
            f"{card.path}: splits.{split}: {card.load.location} has no split '{name}'; leave out `name` to take "
            f"all that is there (with `keep` for a part of it)"
        )


def folder_of_split(card: DatasetCard, split: str) -> Path:
    """Return the card's folder, or its sub-folder with the stored split's name.

    Raises:
        UserError: when there is no such folder or split.
    """
    folder = Path(card.load.location)
    if not folder.is_dir():
        raise UserError(f"{card.path}: load.{card.load.kind}: there is no folder {folder}")
    named = folder / card.split(split).name
    if named.is_dir():
        return named
    refuse_other_splits(card, split)
    return folder


def below_common(places: Sequence[str]) -> list[list[str]]:
    """Return the parts of each path below the folders that all have in common."""
    parts = [place.split("/") for place in places]
    common = 0
    for level in zip(*(path[:-1] for path in parts), strict=False):  # as deep as the least deep of them
        if len(set(level)) > 1:
            break
        common += 1
    return [path[common:] for path in parts]


def bears(parts: Sequence[str], name: str) -> bool:
    """Return whether a file is named after a split: ``train.tar``, ``train-a.tar``, ``train_01.tar``,
    ``train/a.tar``.
    """
    own = re.escape(name)
    return name in parts[:-1] or re.match(rf"{own}(\.[a-z]+($|\?)|-|[_.]?\d)", parts[-1]) is not None


def short_names(places: Sequence[str]) -> list[str]:
    """Return the names of files without suffix; those of all with their folders where some are alike."""
    stems = [Path(place).stem for place in places]
    if len(set(stems)) == len(stems):
        return stems
    return ["/".join((*path[:-1], Path(path[-1]).stem)) for path in below_common(places)]
