"""Heat maps as pictures: what every stage of training gave to each set and took from it, and what an encoder chose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import Normalize, SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from uniaudio.evaluate.forgetting import UNKNOWN, ScoreMatrix
from uniaudio.evaluate.heat_tables import HeatTable

DARK = "#2b2f36"  # a PNG has its own white paper, so its words need not read on dark paper too
PALE = "#e3e6ea"
NUMBERED = 24  # columns of a heat map whose cells still have room for their numbers
FRAME = "#f58518"  # orange is seen on blue, on red and on white
STYLE = {
    "text.color": DARK,
    "axes.labelcolor": DARK,
    "xtick.color": DARK,
    "ytick.color": DARK,
    "axes.edgecolor": "#8a8f98",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "legend.frameon": False,
}


def draw_matrices(matrices: Mapping[str, ScoreMatrix], path: Path) -> None:
    """Draw a heat map stage by set for every matrix, one below the other, into a PNG file.

    The colour is the change against ``start`` in points, on one scale for all matrices; a frame marks the row after
    whose stage a set was first trained on.

    Raises:
        ValueError: when there is no matrix.
    """
    if not matrices:
        raise ValueError("there is no score matrix to draw")
    changes = [abs(c) for m in matrices.values() for row in m.changes() for c in row if c is not None]
    # a loss of two points has to be seen beside a gain of forty, so the scale is linear only up to one point
    limit = max(10.0, *changes) if changes else 10.0
    norm = SymLogNorm(linthresh=1.0, vmin=-limit, vmax=limit, base=10)
    heights = [0.52 * len(matrix.stages) + 1.1 for matrix in matrices.values()]
    widest = max(len(matrix.sets) for matrix in matrices.values())
    names = max(len(stage) for matrix in matrices.values() for stage in matrix.stages)
    with matplotlib.rc_context(STYLE):
        size = (max(5.0, 1.6 + 0.07 * names + 0.95 * widest), sum(heights) + 0.3)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(matrices), 1, height_ratios=heights, squeeze=False)
        for axes, (title, matrix) in zip(grid[:, 0], matrices.items(), strict=True):
            image = draw_matrix(axes, title, matrix, norm)
        bar = figure.colorbar(image, ax=grid[:, 0], fraction=0.03, pad=0.02, aspect=30)
        ticks = [tick for tick in (0, 1, 3, 10, 30, 100) if tick <= limit]
        marks = sorted({sign * tick for tick in ticks for sign in (-1, 1)})
        bar.set_ticks(marks, labels=[f"{mark:+d}" if mark else "0" for mark in marks])
        bar.ax.minorticks_off()
        bar.ax.tick_params(length=0)
        bar.outline.set_visible(False)
        bar.set_label("change from the start, in points")
        if any(learned is not None for matrix in matrices.values() for learned in matrix.learned):
            figure.supxlabel("framed: the stage that first trained on the set", fontsize=8)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=150)


def draw_matrix(axes: Any, title: str, matrix: ScoreMatrix, norm: Any) -> Any:
    """Draw the heat map of one matrix and return its image; cells without a change are pale."""
    changes = np.array(matrix.changes(), dtype=float)  # None becomes nan
    colors = matplotlib.colormaps["RdBu"].with_extremes(bad=PALE)
    image = draw_heat_map(axes, title, matrix.stages, matrix.sets, changes, colors, norm)
    for (row, column), change in np.ndenumerate(changes):
        score = matrix.scores[row][column]
        text = UNKNOWN if score is None else f"{score:.3f}"
        if row and not np.isnan(change):
            text += f"\n{change:+z.1f}"
        strong = not np.isnan(change) and abs(float(norm(change)) - 0.5) > 0.28
        write_cell(axes, row, column, text, strong)
    axes.set_xticks(np.arange(len(matrix.sets) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(matrix.stages) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    for column, learned in enumerate(matrix.learned):
        if learned is not None:
            corner = (column - 0.5, learned - 0.5)
            frame = Rectangle(corner, 1, 1, fill=False, edgecolor=FRAME, linewidth=2.4, zorder=3)
            axes.add_patch(frame).set_clip_on(False)
    return image


def draw_tables(tables: Sequence[HeatTable], path: Path) -> None:
    """Draw tables of shares, one below the other, into a PNG file; white is a shade of 0."""
    heights = [0.45 * len(table.rows) + 1.1 for table in tables]
    widest = max(len(table.columns) for table in tables)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(max(5.0, 2.6 + 0.75 * widest), sum(heights)), layout="constrained")
        grid = figure.subplots(len(tables), 1, height_ratios=heights, squeeze=False)
        for axes, table in zip(grid[:, 0], tables, strict=True):
            names = [name for name, _ in table.rows]
            shades = np.array([[cell.shade for cell in cells] for _, cells in table.rows])
            draw_heat_map(axes, table.caption, names, table.columns, shades, "Blues", Normalize(0, 1))
            for (row, column), shade in np.ndenumerate(shades) if len(table.columns) <= NUMBERED else ():
                write_cell(axes, row, column, table.rows[row][1][column].text, shade > 0.6)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png", dpi=150)


def draw_heat_map(
    axes: Any, title: str, rows: Sequence[str], columns: Sequence[str], values: Any, colors: Any, norm: Any
) -> Any:
    """Colour the cells of ``values [rows, columns]``, name rows and columns, and return the image."""
    image = axes.imshow(np.ma.masked_invalid(values), cmap=colors, norm=norm, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=25, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), rows)
    axes.set_title(title, loc="left", fontweight="bold")
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    return image


def write_cell(axes: Any, row: int, column: int, text: str, on_dark: bool) -> None:
    """Write a number into a cell."""
    color = "white" if on_dark else DARK
    axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8, linespacing=1.25)
