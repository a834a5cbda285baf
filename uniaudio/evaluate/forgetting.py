"""What training on new data took from a model and gave to it: scores by stage and set, and their summary.

A score matrix R has one row for every stage of training and one column for every labelled set; row 0 is the model
before any training. The measures follow Lopez-Paz & Ranzato 2017 (Gradient Episodic Memory) and Chaudhry et al. 2018
(Riemannian Walk), with one addition: a set that is only watched counts as known since row 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from uniaudio.console import format_difference, make_table
from uniaudio.evaluate.heat_tables import Cell, HeatTable

START = "start"
POINTS = 100.0  # a point is 0.01 of a score
UNKNOWN = "–"


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores ``R[i][j]`` of set j after stage i; the higher the better.

    Args:
        stages: names of the S + 1 rows, each once; the first is ``start``, the model before any training.
        sets: names of the N columns, each once.
        scores: S + 1 rows of N scores, None where nothing was measured.
        learned: for each set the row after whose stage it was first trained on, None if it is only watched.

    Raises:
        ValueError: when a name stands twice, the first row is not ``start``, there is no set, the shapes disagree,
            a score is not finite, or ``learned`` names no row.
    """

    stages: tuple[str, ...]
    sets: tuple[str, ...]
    scores: tuple[tuple[float | None, ...], ...]
    learned: tuple[int | None, ...]

    def __post_init__(self) -> None:
        if not self.stages or self.stages[0] != START:
            raise ValueError(f"the first stage of a score matrix is {START!r}, not {self.stages[:1]}")
        if not self.sets:
            raise ValueError("a score matrix needs at least one set")
        for kind, names in (("stages", self.stages), ("sets", self.sets)):
            if len(set(names)) < len(names):
                raise ValueError(f"the {kind} of a score matrix contain a name twice: {', '.join(names)}")
        rows, columns = len(self.stages), len(self.sets)
        if len(self.scores) != rows or any(len(row) != columns for row in self.scores):
            raise ValueError(f"the scores are not {rows} rows (stages) of {columns} (sets)")
        if len(self.learned) != columns:
            raise ValueError(f"learned has {len(self.learned)} entries for {columns} sets")
        for stage, row in zip(self.stages, self.scores, strict=True):
            for name, score in zip(self.sets, row, strict=True):
                if score is not None and not math.isfinite(score):
                    raise ValueError(f"the score of {name} after {stage} is {score}; None means not measured")
        for name, stage_index in zip(self.sets, self.learned, strict=True):
            if stage_index is not None and not 0 <= stage_index < rows:
                raise ValueError(f"{name} was learned in row {stage_index}, but the rows are 0 to {rows - 1}")

    def column(self, index: int) -> list[float | None]:
        """Return the S + 1 scores of one set, by stage."""
        return [row[index] for row in self.scores]

    def changes(self) -> list[list[float | None]]:
        """Return ``R[i][j] - R[0][j]`` in points, S + 1 rows of N, None where one of the two was not measured."""
        return [
            [subtract_scores(score, first, POINTS) for score, first in zip(row, self.scores[0], strict=True)]
            for row in self.scores
        ]

    def to_json(self) -> dict[str, list[Any]]:
        """Return the matrix as ``stages``, ``sets``, ``scores`` and ``learned``, all of them lists."""
        return {
            "stages": list(self.stages),
            "sets": list(self.sets),
            "scores": [list(row) for row in self.scores],
            "learned": list(self.learned),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ScoreMatrix:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: when a part is missing, or the parts do not fit together.
        """
        missing = [part for part in ("stages", "sets", "scores", "learned") if part not in data]
        if missing:
            raise ValueError(f"this is no score matrix: it has no {', '.join(missing)}")
        return cls(
            tuple(data["stages"]),
            tuple(data["sets"]),
            tuple(tuple(row) for row in data["scores"]),
            tuple(data["learned"]),
        )


@dataclass(frozen=True)
class ForgettingSummary:
    """The measures of one score matrix, in the unit of its scores; None where no set could be counted.

    ``per_set`` holds for every set ``start``, ``final``, ``best`` (over all rows), ``change`` (final - start) and
    ``forgetting`` (best - final), None where not measured. It looks at all rows, while the mean ``forgetting`` looks
    only at the rows since a set was learned.
    """

    average_accuracy: float | None
    backward_transfer: float | None
    forgetting: float | None
    per_set: dict[str, dict[str, float | None]]


def summarize_matrix(matrix: ScoreMatrix) -> ForgettingSummary:
    """Summarise what was kept, lost and gained, with S the last row and l the row in which set j was learned.

    - average accuracy: mean_j R[S, j] (Lopez-Paz & Ranzato 2017)
    - backward transfer: mean_j (R[S, j] - R[l, j]) over the sets with l < S (Lopez-Paz & Ranzato 2017)
    - forgetting: mean_j (max_{i >= l} R[i, j] - R[S, j]) over the same sets (Chaudhry et al. 2018). Their maximum
      leaves out row S and may go below 0; ours takes it in, so that a set that got better counts as 0.

    A watched set counts with l = 0, since the starting model knows it already. A set whose R[S, j] or R[l, j] was not
    measured is left out of the mean that needs it.
    """
    last = len(matrix.stages) - 1
    backward: list[float | None] = []
    lost: list[float | None] = []
    for index, row in enumerate(matrix.learned):
        column = matrix.column(index)
        known = row or 0
        if known < last and column[known] is not None:
            backward.append(subtract_scores(column[last], column[known]))
            lost.append(subtract_scores(find_highest(column[known:]), column[last]))
    return ForgettingSummary(
        average_accuracy=mean(matrix.scores[last]),
        backward_transfer=mean(backward),
        forgetting=mean(lost),
        per_set={name: summarize_set(matrix.column(index)) for index, name in enumerate(matrix.sets)},
    )


def summarize_set(column: list[float | None]) -> dict[str, float | None]:
    """Return ``start``, ``final``, ``best``, ``change`` and ``forgetting`` of the scores of one set, by stage."""
    start, final, best = column[0], column[-1], find_highest(column)
    return {
        "start": start,
        "final": final,
        "best": best,
        "change": subtract_scores(final, start),
        "forgetting": subtract_scores(best, final),
    }


def subtract_scores(first: float | None, second: float | None, unit: float = 1.0) -> float | None:
    """Return (first - second) * unit, or None where one of them is unknown."""
    return None if first is None or second is None else (first - second) * unit


def find_highest(scores: Iterable[float | None]) -> float | None:
    """Return the highest known score, or None where none is known."""
    return max((score for score in scores if score is not None), default=None)


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known values, or None where none is known."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


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
            text = UNKNOWN if score is None else f"{score:.3f}"
            framed = matrix.learned[column] == row
            if row == 0 or change is None:
                cells.append(Cell(text, framed=framed))
            else:
                shade = min(1.0, abs(change) / 10)
                kind = "gain" if change > 0 else "loss"
                cells.append(Cell(f"{text} ({format_difference(change, 1)})", shade, kind, framed))
        rows.append((stage, cells))
    return HeatTable(f"{name}: score (change from the start in points)", "after", matrix.sets, rows)


def build_summary_table(summaries: Mapping[str, ForgettingSummary]) -> Table:
    """Lay out one row a matrix: the average accuracy as a score, what was lost and transferred in points."""
    columns = ("average accuracy", "backward transfer", "forgetting")
    title = "forgetting and transfer (in points, except the accuracy)"
    table = make_table(title, "scores", *columns, numbers=3)
    for name, summary in summaries.items():
        accuracy = summary.average_accuracy
        moves = ((summary.backward_transfer, "+z.1f"), (summary.forgetting, "z.1f"))
        cells = [UNKNOWN if value is None else format(value * POINTS, form) for value, form in moves]
        table.add_row(name, UNKNOWN if accuracy is None else f"{accuracy:.3f}", *cells)
    return table
