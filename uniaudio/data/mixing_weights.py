"""How much of each training set a recipe draws: weights by examples, hours or rows, and shares of equal pairings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniaudio.data.card import DatasetCard
from uniaudio.data.recipe_entries import Entry
from uniaudio.data.recipe_file import EntryFile, Mix, RecipeFile
from uniaudio.data.sources.source_kinds import open_source
from uniaudio.errors import UserError


def compute_line_shares(data: RecipeFile, cards: Sequence[DatasetCard], path: Path) -> list[float]:
    """Return the share of all draws of each line of `train`: by weight, of what the replayed recipes leave.

    Args:
        cards: of the lines. path: of the recipe, for messages.

    Raises:
        UserError: for a mix by hours or rows that are not known, and for weights that are too large or too small.
    """
    pairs = zip(data.train, cards, strict=True)
    try:
        weights = [compute_weight(line, card, data.mix, path) for line, card in pairs]
        total = sum(weights)
    except OverflowError:
        total = math.inf
    if not 0 < total < math.inf:
        raise UserError(
            f"{path}: the weights of `train` with mix.temperature {data.mix.temperature:g} are too large or too small "
            "for a number; raise the temperature, or write weights nearer to 1"
        )
    unreplayed = 1.0 - sum(replay.share for replay in data.replay)
    return [unreplayed * weight / total for weight in weights]


def compute_weight(line: EntryFile, card: DatasetCard, mix: Mix, path: Path) -> float:
    """Return the relative weight of a line before shares."""
    if mix.by == "examples":
        return line.weight ** (1 / mix.temperature)
    if mix.by == "rows":
        return line.weight * count_rows(line, card, path) ** (1 / mix.temperature)
    hours = card.split(line.split).hours
    if hours is None:
        raise UserError(f"{path}: mix by hours needs `hours` in the card of {card.name}")
    return line.weight * hours ** (1 / mix.temperature)


def count_rows(line: EntryFile, card: DatasetCard, path: Path) -> int:
    """Return the rows of a line's split: counted where the source knows them, else as the card states them."""
    stated = card.split(line.split).rows
    num_rows = stated if stated is not None else open_source(card, line.split).size
    if num_rows is None:
        raise UserError(
            f"{path}: mix by rows needs `splits.{line.split}.rows` in the card of {card.name}, "
            "because its source cannot count rows without reading all of them"
        )
    return num_rows


def join_pairings(entries: list[Entry]) -> list[Entry]:
    """Add up the shares of a pairing that both the recipe and a replayed one draw from."""
    merged: list[Entry] = []
    for entry in entries:
        same = [i for i, old in enumerate(merged) if is_same_pairing(old, entry)]
        if same:
            merged[same[0]] = replace(merged[same[0]], share=merged[same[0]].share + entry.share)
        else:
            merged.append(entry)
    return merged


def is_same_pairing(one: Entry, other: Entry) -> bool:
    """Return whether two entries ask the same of the same rows, their clips changed in the same way."""

    def list_parts(entry: Entry) -> tuple[Any, ...]:
        steps = entry.augmenter.steps if entry.augmenter is not None else ()
        texts = [template.list_texts() for template in entry.templates]
        return entry.name, texts, entry.constants, entry.label_sets, entry.long_clips, steps

    return list_parts(one) == list_parts(other)


def refuse_namesakes(entries: Sequence[Entry], path: Path) -> None:
    """Refuse different datasets with one name, such as that of a replayed recipe: the name stands for their rows.

    Args:
        path: of the recipe.

    Raises:
        UserError: naming both cards.
    """

    def list_rows(card: DatasetCard) -> tuple[Any, ...]:
        splits = {
            name: (split.name, split.keep.source if split.keep is not None else None, split.files)
            for name, split in card.splits.items()
        }
        return card.load, splits

    cards: dict[str, DatasetCard] = {}
    for entry in entries:
        card = entry.dataset
        first = cards.setdefault(card.name, card)
        if list_rows(first) != list_rows(card):
            raise UserError(
                f"{path}: draws from two datasets called {card.name} ({first.path} and {card.path}); rename one of them"
            )
