"""Rows to micro-batches: what a row costs of the budget, and rows of like length filled up to it, all equally."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uniaudio.data.prompt_tokens import prefix_of
from uniaudio.data.sources.base import Row
from uniaudio.data.template import Rendered
from uniaudio.types import SAMPLE_RATE

if TYPE_CHECKING:  # it draws the rows
    from uniaudio.data.mixture import Mixture

BISECTIONS = 12  # enough to level micro-batches within a thousandth of the budget


@dataclass(frozen=True)
class PlannedRow:
    """A row to decode, with what is asked about it.

    Args:
        entry: index in the recipe's ``train``. k: number of the draw from it, over all streams.
        seconds: of all clips, before augmentation. cost: share of a micro-batch's budget.
        questions: (task, rendered), one per template.
    """

    entry: int
    k: int
    row: Row
    seconds: float
    cost: float
    questions: tuple[tuple[str, Rendered], ...]


def compute_audio_cost(seconds: float, questions: float, per_example: float, stretch: float = 1.0) -> float:
    """Return what a row takes of ``budget.audio_seconds``: its clips at their longest, and its questions.

    Args:
        seconds: of all clips of the row before augmentation. questions: about them. per_example: seconds that each of
            these costs. stretch: see ``compute_row_cost``.
    """
    return seconds * stretch + per_example * questions


def compute_row_cost(
    mixture: Mixture, seconds: Sequence[float], questions: Sequence[Rendered], stretch: float = 1.0
) -> float:
    """Return the share of a micro-batch's budget that a row takes: the larger one of encoder and decoder.

    Args:
        mixture: with the budget. seconds: of every clip of the row. stretch: largest ratio of a clip's length after
            augmentation to that before; which ratio is drawn is only known when the clip is decoded.
    """
    audio_cost = compute_audio_cost(sum(seconds), len(questions), mixture.per_example, stretch)
    audio_share = audio_cost / mixture.audio_seconds
    if mixture.tokens is None:
        return audio_share
    clips = [mixture.count_slots(round(length * stretch * SAMPLE_RATE)) for length in seconds]
    tokens, known = 0, set()
    for question in questions:
        pieces = mixture.format.encode_prompt(question.prompt)
        tokens += len(pieces[-1]) + len(mixture.format.answer(question.answer))
        prefix = prefix_of(pieces)
        if prefix not in known or not mixture.shares_prefixes:
            tokens += sum(clips) + sum(len(piece) for piece in prefix)
            known.add(prefix)
    return max(audio_share, tokens / mixture.tokens)


def make_micro_batches(rows: Sequence[PlannedRow], seed: int) -> list[tuple[PlannedRow, ...]]:
    """Sort by length and fill micro-batches evenly within the budget; shuffle their order."""
    ordered = sorted(rows, key=lambda planned: (planned.seconds, planned.entry, planned.k))
    batches = level_micro_batches(ordered)
    random.Random(seed).shuffle(batches)
    return [tuple(batch) for batch in batches]


def fill_micro_batches(rows: Sequence[PlannedRow], limit: float) -> list[list[PlannedRow]]:
    """Cut rows in order, each micro-batch up to the limit; a row above it stands alone."""
    batches: list[list[PlannedRow]] = []
    room = 0.0
    for row in rows:
        if not batches or row.cost > room:
            batches.append([])
            room = limit
        batches[-1].append(row)
        room -= row.cost
    return batches


def level_micro_batches(rows: Sequence[PlannedRow]) -> list[list[PlannedRow]]:
    """Cut rows into as few micro-batches as the budget allows, all about equally full: ranks then finish together."""
    fewest = len(fill_micro_batches(rows, 1.0))
    limits = [step / (1 << BISECTIONS) for step in range(1, (1 << BISECTIONS) + 1)]
    # more room never needs more micro-batches, so the smallest limit that does, 1 at most, is found by halving
    lowest = bisect_left(limits, True, key=lambda limit: len(fill_micro_batches(rows, limit)) <= fewest)
    return fill_micro_batches(rows, limits[lowest])
