"""How the rows of a new task are divided into train and test, so that neither knows the other's clips."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from uniaudio.data.column_names import FOLDS, GROUPS, SPLITS, find_named
from uniaudio.data.jinja import compute_unit_hash
from uniaudio.data.keep_conditions import KEY
from uniaudio.data.scaffold.column_profiles import ColumnProfile
from uniaudio.data.sources.split_names import find_named_splits

TEST_SHARE, TEST_SHARE_OF_FEW, FEW_ROWS = 0.1, 0.2, 200
LARGEST_TEST = 0.5  # share of rows that a test split may take where groups are few
MOST_FOLDS = 20
MOST_SPLIT_NAMES = 12
HASHES, MOST_SEEDS = 200_000, 200  # that are tried for a division with all labels on both sides
IDENTIFIER = re.compile(r"[^\W\d]\w*")

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Division:
    """Splits as a card states them.

    Args:
        splits: of the card. train: those that are trained on. test: the one that is evaluated, if there is one.
        reason: how the rows are divided, in words. notes: what to look at, a sentence each.
    """

    splits: dict[str, dict[str, Any]]
    train: tuple[str, ...]
    test: str | None
    reason: str
    notes: list[str] = field(default_factory=list)


def divide_rows(
    rows: Mapping[str, Sequence[Columns]],
    profiles: Mapping[str, ColumnProfile],
    labels: Mapping[str, Sequence[str]] | None,
    clip: str | None,
    is_file: bool,
) -> Division:
    """Keep the splits that data have; else divide them by folds, speakers or groups, else by clips.

    Args:
        rows: of every stored split, each with its key as a column.
        labels: of the same rows, where the answer is a label. clip: the column that names clips, where rows have one.
        is_file: whether rows with the same name of a clip have the same file, whatever their splits.
    """
    file = clip if is_file else None
    if len(rows) > 1 and (division := keep_stored_splits(rows, profiles, file)) is not None:
        return division
    stored, columns = next(iter(rows.items()))
    notes = []
    if len(rows) > 1:
        rest = ", ".join(list(rows)[1:])
        notes.append(
            f"no stored split is called train: only {stored} is used, not {rest}; see `splits` in the card"
        )
    name = {} if stored == "train" else {"name": stored}
    of_rows = None if labels is None else labels[stored]
    division = (
        divide_by_split_column(columns, profiles, name, file)
        or divide_by_fold(profiles, name)
        or divide_by_hash(columns, profiles, name, of_rows, clip)
    )
    division.notes[:0] = notes
    return division


def keep_stored_splits(
    rows: Mapping[str, Sequence[Columns]], profiles: Mapping[str, ColumnProfile], file: str | None
) -> Division | None:
    """Return the stored splits as those of the card; None where none of them is for training."""
    meaning = {name: find_named_splits(name) or {name} for name in rows}
    train = tuple(name for name, means in meaning.items() if "train" in means)
    if not train:
        return None
    test = next(
        (
            name
            for wanted in ("test", "validation")
            for name in rows
            if wanted in meaning[name] and name not in train
        ),
        None,
    )
    splits = {name: {} if name == "train" else {"name": name} for name in rows}
    notes = []
    if test is not None:
        trained = [row for name in train for row in rows[name]]
        notes = note_shared_groups(trained, rows[test], profiles, file)
    return Division(splits, train, test, f"the splits of the data, {', '.join(rows)}", notes)


def divide_by_split_column(
    rows: Sequence[Columns],
    profiles: Mapping[str, ColumnProfile],
    name: Mapping[str, str],
    file: str | None,
) -> Division | None:
    """Divide by a column that names the split of a row."""
    for column in find_named(profiles, SPLITS):
        profile = profiles[column]
        if profile.is_open or profile.different > MOST_SPLIT_NAMES or not IDENTIFIER.fullmatch(column):
            continue
        named: dict[str, list[str]] = {}
        for value in profile.values:
            for meaning in find_named_splits(value):
                named.setdefault(meaning, []).append(value)
        if "train" not in named or len(named) < 2:
            continue
        splits: dict[str, dict[str, Any]] = {
            split: {**name, "keep": compare(column, named[split])}
            for split in ("train", "validation", "test")
            if split in named
        }
        test = "test" if "test" in named else "validation"
        train, tested = (
            [row for row in rows if str(row.get(column)) in named[side]] for side in ("train", test)
        )
        notes = note_shared_groups(train, tested, profiles, file)
        return Division(splits, ("train",), test, f"the column `{column}`", notes)
    return None


def compare(column: str, values: Sequence[str]) -> str:
    """Return the condition that a column has one of some values."""
    if len(values) == 1:
        return f"{column} == {values[0]!r}"
    return f"{column} in {list(values)!r}"


def divide_by_fold(profiles: Mapping[str, ColumnProfile], name: Mapping[str, str]) -> Division | None:
    """Divide by a column of folds: the last one is the test split."""
    for column in find_named(profiles, FOLDS):
        profile = profiles[column]
        if profile.numbers < profile.filled or profile.fractions or not 2 <= profile.different <= MOST_FOLDS:
            continue
        last = max(int(float(value)) for value in profile.values)
        splits = {
            "train": {**name, "keep": f"{column} != {last}"},
            "test": {**name, "keep": f"{column} == {last}"},
        }
        return Division(splits, ("train",), "test", f"the column `{column}`: {last} is the test split")
    return None


def divide_by_hash(
    rows: Sequence[Columns],
    profiles: Mapping[str, ColumnProfile],
    name: Mapping[str, str],
    labels: Sequence[str] | None,
    clip: str | None,
) -> Division:
    """Divide by a hash of the speaker or group of a row where that is possible, else of its clip."""
    notes: list[str] = []
    for column in find_named(profiles, GROUPS):
        if not IDENTIFIER.fullmatch(column) or profiles[column].filled < len(rows):
            continue
        chosen = choose_seed([str(row.get(column)) for row in rows], labels)
        if chosen is not None and chosen.is_complete:
            reason = f"`{column}`, each of {profiles[column].different:,} on one side only"
            return build_hash_division(column, chosen, name, reason, notes)
        why = (
            "a label would be on one side only"
            if chosen is not None and labels is not None
            else "it has too few"
        )
        notes.append(f"train and test are not divided by `{column}`: {why}")
    column = clip if clip is not None and IDENTIFIER.fullmatch(clip) else KEY
    chosen = choose_seed([str(row.get(column)) for row in rows], labels)
    if chosen is None:
        notes.append("there are too few clips for a test split, so there is no evaluation")
        return Division(
            {"train": dict(name)}, ("train",), None, "none: all rows are used for training", notes
        )
    if chosen.untrained:
        notes.append(
            f"{chosen.untrained:,} label(s) have so few clips that they occur only in the test split"
        )
    what = "name of the clip" if column != KEY else "key of the row"
    return build_hash_division(column, chosen, name, f"a hash of the {what}", notes)


@dataclass(frozen=True)
class Seed:
    """A seed of the hash, the share below which a value is in the test split, and whether all labels are in both.

    Args:
        untrained: labels that are in the test split alone.
    """

    seed: int
    share: float
    is_complete: bool
    untrained: int


def choose_seed(groups: Sequence[str], labels: Sequence[str] | None) -> Seed | None:
    """Return the first seed that puts about the wanted share of rows and all labels on both sides, or the best one.

    Args:
        groups, labels: of every row.

    Returns:
        None where there is nothing to divide.
    """
    wanted = TEST_SHARE if len(groups) >= FEW_ROWS else TEST_SHARE_OF_FEW
    sizes = Counter(groups)
    if len(sizes) < 2:
        return None
    labels_of: dict[str, set[str]] = {}
    for group, label in zip(groups, labels or [""] * len(groups), strict=True):
        labels_of.setdefault(group, set()).add(label)
    every = set[str]().union(*labels_of.values())
    best: tuple[tuple[int, int, float], int] | None = None
    for seed in range(max(3, min(MOST_SEEDS, HASHES // len(sizes)))):
        test = {group for group in sizes if compute_unit_hash(group, seed) < wanted}
        share = sum(sizes[group] for group in test) / len(groups)
        if not 0 < share <= LARGEST_TEST:
            continue
        tested = set[str]().union(*(labels_of[group] for group in test))
        trained = set[str]().union(*(labels_of[group] for group in sizes if group not in test))
        score = (len(every - trained), len(every - tested), abs(share - wanted))
        if best is None or score < best[0]:
            best = score, seed
        if score[:2] == (0, 0) and score[2] <= wanted / 4:
            break
    if best is None:
        return None
    (untrained, untested, _), seed = best
    return Seed(seed, wanted, untrained == 0 and untested <= len(every) / 5, untrained)


def build_hash_division(
    column: str, chosen: Seed, name: Mapping[str, str], reason: str, notes: list[str]
) -> Division:
    """Return the splits that a seed makes."""
    hashed = f"{column} | unit_hash({chosen.seed or ''})".replace("()", "")
    splits = {
        "train": {**name, "keep": f"{hashed} >= {chosen.share:g}"},
        "test": {**name, "keep": f"{hashed} < {chosen.share:g}"},
    }
    return Division(splits, ("train",), "test", reason, notes)


def note_shared_groups(
    train: Collection[Columns],
    test: Collection[Columns],
    profiles: Mapping[str, ColumnProfile],
    file: str | None,
) -> list[str]:
    """Return a sentence for each column of clips, speakers or groups whose values are in train and test.

    Args:
        file: the column of clips, where equal names are the same file.
    """
    notes = []
    for column in [*([file] if file is not None else []), *find_named(profiles, GROUPS)]:
        sides = [
            {str(row.get(column)) for row in rows if isinstance(row.get(column), str | int)}
            for rows in (train, test)
        ]
        both = sides[0] & sides[1]
        if both:
            notes.append(
                f"{len(both):,} of {len(sides[1]):,} values of `{column}` in the test split are "
                f"also trained on ({', '.join(sorted(both)[:3])}{' ...' if len(both) > 3 else ''}); "
                "these splits come with the data"
            )
    return notes
