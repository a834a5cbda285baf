"""Which split a file or folder names: a split's name as a whole word of its path, or another word for it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import lru_cache

SAME = (
    ("train", "training"),
    ("validation", "valid", "val", "dev"),
    ("test", "testing", "eval", "evaluation"),
)
USUAL = tuple(word for group in SAME for word in group)  # names of files and folders of splits
# esc_train, escTrain, train01, ESC-TRAIN; letters of other scripts as they stand together
WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_a-zA-Z]+")


@lru_cache(maxsize=1024)
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a file's or folder's name, in lower case."""
    return tuple(word.lower() for word in WORDS.findall(name))


def has_words(name: str, split: str) -> bool:
    """Return whether the words of a split's name follow one another in a name."""
    wanted, plain = words_of(split), name.lower()
    if not all(word in plain for word in wanted):  # of a hundred thousand names most end here
        return False
    words = words_of(name)
    return bool(wanted) and any(
        words[i : i + len(wanted)] == wanted for i in range(len(words) - len(wanted) + 1)
    )


def list_other_words(split: str) -> tuple[str, ...]:
    """Return the other usual words for a split."""
    group = next((group for group in SAME if split.lower() in group), ())
    return tuple(word for word in group if word != split.lower())


def find_named_splits(name: str) -> set[str]:
    """Return the splits, by the first of the usual words for each, that a name contains."""
    plain = name.lower()
    if not any(word in plain for word in USUAL):
        return set()
    words = set(words_of(name))
    return {group[0] for group in SAME if words.intersection(group)}


def is_named_after(parts: Sequence[str], name: str) -> bool:
    """Return whether a file is named after a split: ``train.tar``, ``train-a.tar``, ``train_01.tar``,
    ``train/a.tar``.
    """
    pattern = re.escape(name)
    return name in parts[:-1] or re.match(rf"{pattern}(\.[a-z]+($|\?)|-|[_.]?\d)", parts[-1]) is not None


def choose_files(paths: Sequence[Sequence[str]], split: str, splits: Collection[str]) -> list[bool] | None:
    """Return which files are a split, or None where none names it.

    The plainest name wins: a file that begins with the split's name or lies in a folder of this name, then its name as
    a whole word anywhere in the path, then another usual word for it (dev for validation).

    Args:
        paths: of the files, as parts below the folder that all have in common. splits: the stored splits of a card.
    """
    longer = [other for other in splits if other != split and has_words(other, split)]
    everything = "\n".join("/".join(parts) for parts in paths).lower()
    for word in (split, *list_other_words(split)):
        if not all(part in everything for part in words_of(word)):
            continue
        for names in (is_named_after, has_word):
            chosen = [
                names(parts, word) and not any(names(parts, other) for other in longer) for parts in paths
            ]
            if any(chosen):
                return chosen
    return None


def has_word(parts: Sequence[str], word: str) -> bool:
    """Return whether the last part of a path that names a split names this one.

    So a file ``test/a_train.tar`` is of the split train.
    """
    for part in reversed([part.partition("?")[0] for part in parts]):
        if has_words(part, word):
            return True
        if find_named_splits(part):
            return False
    return False
