"""Heat maps as tables: every cell has its number, and a shade from 0 to 1 behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from uniaudio.console import make_table


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

    def lay_out(self) -> Table:
        """Return the texts as a table for a terminal."""
        table = make_table(self.caption, self.corner, *self.columns, numbers=len(self.columns))
        for name, cells in self.rows:
            table.add_row(name, *(cell.text for cell in cells))
        return table
