"""Which of the files and folders that a card names belong to a split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from uniaudio.data.card import DatasetCard
from uniaudio.data.sources.folder_walk import HIDDEN
from uniaudio.data.sources.paths import expand_places, join_place, strip_common_folders
from uniaudio.data.sources.split_names import (
    USUAL,
    choose_files,
    find_named_splits,
    has_words,
    is_named_after,
    list_other_words,
)
from uniaudio.errors import UserError

SPLIT = "{split}"  # in a place: the stored split's name
ONLY_SPLIT = "train"  # the name of the split where the stored data know no splits; also a card's default


def list_split_files(
    card: DatasetCard, split: str, suffixes: tuple[str, ...], left_out: Counter[str] | None = None
) -> list[str]:
    """Return the files and URLs of a split, in a stable order.

    They are those that the card states as its ``files``; ``{split}`` in a place stands for the stored split's name.
    Without both, files that name the stored split, or that lie in a folder that does, are the split (see
    ``choose_files``). Where no file names any split, all of them are the split ``train``.

    Args:
        suffixes: of the files, the usual one first. left_out: is counted what is skipped, by reason.

    Raises:
        UserError: for a place that does not exist or cannot be read, for a split that no file names, and for files of
            which it cannot be told.
    """
    left_out = Counter() if left_out is None else left_out
    name, where = card.split(split).name, f"{card.path}: load.{card.load.kind}"
    stated = [join_place(card.load.places[0], file) for file in card.split(split).files]
    places = [place.replace(SPLIT, name) for place in stated or card.load.places]
    files_found = expand_places(places, suffixes, where, left_out)
    if stated or any(SPLIT in place for place in card.load.places):
        return files_found
    paths = strip_common_folders(files_found)
    chosen = choose_files(paths, name, {stored.name for stored in card.splits.values()})
    if chosen is None:
        refuse_other_splits(card, split)
        refuse_files_of_splits(card, split, files_found, paths)
        return files_found
    split_files = []
    for place, parts, is_of_split in zip(files_found, paths, chosen, strict=True):
        names = find_named_splits(parts[-1].partition("?")[0])
        if not is_of_split:
            left_out[
                "file of another split"
                if any(map(find_named_splits, parts))
                else "file whose path names no split"
            ] += 1
        elif len(names) > 1 and not is_named_after(parts, name):
            raise UserError(
                f"{where}: {place} names several splits ({', '.join(sorted(names))}); write {SPLIT} "
                "in the path, or list the files of each split in the card"
            )
        else:
            split_files.append(place)
    return split_files


def refuse_files_of_splits(
    card: DatasetCard, split: str, files_found: Sequence[str], paths: Sequence[Sequence[str]]
) -> None:
    """Refuse files that name other splits than the one that is read, unless the card itself names such files alone.

    Raises:
        UserError: naming one of them.
    """
    written = [find_named_splits(Path(place).name) for place in card.load.places if not Path(place).is_dir()]
    meant = set[str]().union(*written)
    for place, parts in zip(files_found, paths, strict=True):
        names = set[str]().union(*map(find_named_splits, parts))
        if names and (names != meant or len(meant) > 1):
            raise UserError(
                f"{card.path}: splits.{split}: {place} names another split ({', '.join(sorted(names))}) and no file "
                f"names '{card.split(split).name}'; name the files of this split under load.{card.load.kind}, or set "
                f"splits.{split}.name"
            )


def refuse_other_splits(card: DatasetCard, split: str) -> None:
    """Refuse a stored split that is not there, for all rows would quietly be in every split.

    Raises:
        UserError: unless the split is the one that data without splits have.
    """
    name = card.split(split).name
    if name != ONLY_SPLIT:
        raise UserError(
            f"{card.path}: splits.{split}: {card.load.location} has no split '{name}'; leave out "
            "`name` to use all rows (with `keep` for a part of them)"
        )


def find_split_folder(card: DatasetCard, split: str, left_out: Counter[str]) -> Path:
    """Return the card's folder, or its sub-folder that names the stored split.

    Args:
        left_out: is counted what lies beside the split's folder.

    Raises:
        UserError: when there is no such folder or split, and when several folders name it.
    """
    name = card.split(split).name
    folder = Path(card.load.location.replace(SPLIT, name))
    if not folder.is_dir():
        raise UserError(f"{card.path}: load.{card.load.kind}: there is no folder {folder}")
    if SPLIT in card.load.location:
        return folder
    beside = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(HIDDEN)
    )
    named = [name] if (folder / name).is_dir() else choose_split_folders(beside, name)
    if len(named) > 1:
        raise UserError(
            f"{card.path}: splits.{split}: several folders of {folder} name the split '{name}' "
            f"({', '.join(named)}); set `name` to one of them, or write {SPLIT} in the path"
        )
    if named:
        others = [other for other in beside if other != named[0]]
        left_out[f"folder beside {named[0]}/"] += len(others)
        return folder / named[0]
    refuse_other_splits(card, split)
    if others := [other for other in beside if other.lower() in USUAL and find_named_splits(other) != {name}]:
        raise UserError(
            f"{card.path}: splits.{split}: {folder} has folders of other splits "
            f"({', '.join(others)}) but none for '{name}'; name a folder of this split, or set "
            f"splits.{split}.name"
        )
    return folder


def choose_split_folders(names: Sequence[str], split: str) -> list[str]:
    """Return the folders that name a split, where folders name splits at all: classes may be called train, too."""
    if split == ONLY_SPLIT and not any(find_named_splits(name) - {ONLY_SPLIT} for name in names):
        return []
    for word in (split, *list_other_words(split)):
        if exact := [name for name in names if name.lower() == word.lower()]:
            return exact
        if files_found := [name for name in names if has_words(name, word)]:
            return files_found
    return []
