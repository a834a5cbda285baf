"""Figures of sets with labels: answers by right answer, and how well the confidence in labels meets accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniaudio.evaluate.heat_tables import Cell, HeatTable

CLOSED = 24  # a set whose labels are not stated has a confusion matrix with at most so many right answers
LARGEST = 60  # and a set with stated labels with at most so many of them
OTHER = "(other)"


def build_confusion_table(name: str, entry: Mapping[str, Any]) -> HeatTable | None:
    """Count how often each right answer was answered with what; None where the right answers are too many or one.

    Each label of a closed set has a row and a column, also where it occurs in no answer. An answer that is right in
    other words or letters counts as the right answer; other answers that are no label of the set stand together.

    Args:
        entry: stored results of an evaluation set.
    """
    answers: Sequence[Mapping[str, Any]] = entry.get("answers") or ()
    names: Sequence[str] = (entry.get("labels") or {}).get("names") or ()
    counts = Counter(str(item["reference"]) for item in answers)
    is_closed = bool(names) and set(counts) <= set(names)
    labels = list(names) if is_closed else sorted(counts)
    if not counts or not 2 <= len(labels) <= (LARGEST if is_closed else CLOSED):
        return None
    known = set(labels)
    given: Counter[tuple[str, str]] = Counter()
    for item in answers:
        right, answer = str(item["reference"]), str(item["answer"])
        given[right, answer if answer in known else right if item.get("right") else OTHER] += 1
    columns = [*labels, OTHER] if any(column == OTHER for _, column in given) else labels
    rows = [
        (
            label,
            [
                Cell(str(given[label, c] or ""), given[label, c] / max(counts[label], 1), framed=c == label)
                for c in columns
            ],
        )
        for label in labels
    ]
    return HeatTable(f"{name}: right answers by row, given answers by column", "right", columns, rows)


@dataclass(frozen=True)
class Reliability:
    """How well the confidence in labels meets the share that is right.

    Args:
        bins: each with ``low``, ``high``, ``count``, ``confidence`` and ``accuracy``; empty ones are left out. ece:
            the expected calibration error.
    """

    name: str
    bins: Sequence[Mapping[str, float]]
    ece: float

    @property
    def count(self) -> int:
        return round(sum(one["count"] for one in self.bins))


def build_reliability(name: str, entry: Mapping[str, Any]) -> Reliability | None:
    """Return the stored bins of an evaluation set whose labels were scored; None of another."""
    labels = entry.get("labels") or {}
    bins = [one for one in labels.get("bins") or () if one["count"]]
    return Reliability(name, bins, float(labels["ece"])) if bins and labels.get("ece") is not None else None
