"""Heat maps as tables: every cell has its number, and a shade from 0 to 1 behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniaudio.console import format_difference
from uniaudio.evaluate.forgetting import ScoreMatrix


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
                kind = "gain" if change > 0 else "loss"
                cells.append(Cell(f"{text} ({format_difference(change, 1)})", shade, kind, framed))
        rows.append((stage, cells))
    return HeatTable(f"{name}: score (change from the start in points)", "after", matrix.sets, rows)
