"""Heat maps as tables: every cell has its number, and a shade from 0 to 1 behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniaudio.evaluate.forgetting import ScoreMatrix

CLOSED = 24  # a set whose labels are not stated has a confusion matrix with at most so many right answers
LARGEST = 60  # and a set with stated labels with at most so many of them
OTHER = "(other)"


@dataclass(frozen=True)
class Cell:
    """The text of a cell; ``kind`` is "share", "gain" or "loss", ``framed`` marks it."""

    text: str
    shade: float = 0.0
    kind: str = "share"
    framed: bool = False


@dataclass(frozen=True)
class HeatTable:
    """Rows by columns of cells, with what rows and columns stand for."""

    caption: str
    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


def build_confusion_table(
    name: str, answers: Sequence[Mapping[str, Any]], names: Sequence[str] = ()
) -> HeatTable | None:
    """Count how often each right answer was answered with what; None where the right answers are too many or one.

    Args:
        names: all labels of a closed set: each has a row and a column, also where it occurs in no answer. Answers that
            are no label of the set stand together.
    """
    counts = Counter(str(item["reference"]) for item in answers)
    is_closed = bool(names) and set(counts) <= set(names)
    labels = list(names) if is_closed else sorted(counts)
    if not counts or not 2 <= len(labels) <= (LARGEST if is_closed else CLOSED):
        return None
    known = set(labels)
    given = Counter(
        (str(item["reference"]), str(item["answer"]) if item["answer"] in known else OTHER)
        for item in answers
    )
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


def build_routing_tables(routes: Mapping[str, Any]) -> list[HeatTable]:
    """Lay out what the encoder chose: one table for each group of choices, tasks by choices."""
    tables = []
    for group, tasks in routes["groups"].items():
        choices = list(dict.fromkeys(choice for shares in tasks.values() for choice in shares))
        highest = max((share for shares in tasks.values() for share in shares.values()), default=0.0)
        rows = [
            (
                task,
                [Cell(f"{shares.get(c, 0.0):.2f}", shares.get(c, 0.0) / max(highest, 1e-9)) for c in choices],
            )
            for task, shares in tasks.items()
        ]
        caption = f"{group}: mean share by task, steps {routes['from_step']} to {routes['to_step']}"
        tables.append(HeatTable(caption, "task", choices, rows))
    return tables


def build_forgetting_table(name: str, matrix: ScoreMatrix) -> HeatTable:
    """Lay out a score matrix: stages by sets, with the change against the start in points.

    The shade is the change, full at 10 points; the stage that first trained on a set is framed.
    """
    changes = matrix.changes()
    rows = []
    for row, (stage, scores) in enumerate(zip(matrix.stages, matrix.scores, strict=True)):
        cells = []
        for column, score in enumerate(scores):
            change = changes[row][column]
            text = "–" if score is None else f"{score:.3f}"
            framed = matrix.learned[column] == row
            if row == 0 or change is None:
                cells.append(Cell(text, framed=framed))
            else:
                shade = min(1.0, abs(change) / 10)
                cells.append(Cell(f"{text} ({change:+.1f})", shade, "gain" if change > 0 else "loss", framed))
        rows.append((stage, cells))
    return HeatTable(f"{name}: score (change against the start in points)", "after", matrix.sets, rows)


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
