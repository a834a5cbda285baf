"""Figures over the cells of real runs: what each arm of a question gives, and what each fusion keeps."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from real_tables import PARTS, Rows, average, list_tasks, mean_score, read_cells

from uniaudio.evaluate.heat_maps import DARK, PALE, STYLE

KINDS = {"knn": ("kNN", "#4c78a8", "o"), "linear": ("linear probe", "#f58518", "D")}
WIDE = 20.0  # points at which the colours of a heat map end
DPI = 150


@dataclass(frozen=True)
class Arm:
    """What is compared: the probes of each of its trainings, and those of the encoder that they were trained from."""

    cells: Sequence[Mapping[str, Any]]
    start: Mapping[str, Any]

    def list_changes(self, probe: str, part: str) -> list[float]:
        """Return by how many points each training moved the mean of a part."""
        before = average(self.start, probe, part)
        after = [average(cell, probe, part) for cell in self.cells]
        return [100 * (value - before) for value in after if value is not None and before is not None]


def draw_questions(questions: Mapping[str, Mapping[str, Arm]], path: Path) -> None:
    """Draw how far every arm moved the means of trained and of unseen sets, in points, into a PNG file.

    A small mark is one training, a large one the mean of several.

    Args:
        questions: title -> its arms by name.
    """
    lines: list[tuple[str, Arm | None]] = []
    for title, arms in questions.items():
        lines += [(title, None), *arms.items()]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11.0, 1.0 + 0.24 * len(lines)), layout="constrained")
        panels = figure.subplots(1, len(PARTS), sharey=True)
        for axes, part in zip(panels, PARTS, strict=True):
            axes.axvline(0, color="#8a8f98", linewidth=1, zorder=0)
            axes.set_title(f"{part} sets", loc="left", fontweight="bold")
            axes.grid(axis="x", color=PALE, zorder=0)
            for probe in KINDS:
                draw_arms(axes, lines, part, probe)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        panels[0].set_yticks(range(len(lines)), [name for name, _ in lines])
        panels[0].set_ylim(len(lines) - 0.4, -0.6)
        for label, (_, arm) in zip(panels[0].get_yticklabels(), lines, strict=True):
            if arm is None:
                label.set_fontweight("bold")
        figure.supxlabel("change of the mean from before training, in points", fontsize=9)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=len(KINDS))
        save_figure(figure, path)


def draw_arms(axes: Any, lines: Sequence[tuple[str, Arm | None]], part: str, probe: str) -> None:
    """Draw the arms' marks of one probe, a little above or below the middle of their lines."""
    shown, color, marker = KINDS[probe]
    offset = -0.16 if probe == "knn" else 0.16
    singles: list[tuple[float, float]] = []
    means: list[tuple[float, float]] = []
    for place, (_, arm) in enumerate(lines):
        if changes := arm.list_changes(probe, part) if arm is not None else []:
            means.append((statistics.mean(changes), place + offset))
        if len(changes) > 1:
            singles += [(change, place + offset) for change in changes]
    for points, size, label in ((means, 34, shown), (singles, 9, None)):
        if points:
            axes.scatter(
                *zip(*points, strict=True), s=size, color=color, marker=marker, label=label, zorder=3
            )


def draw_fusions(rows: Rows, references: Sequence[str], path: Path) -> None:
    """Draw how far every row is above or below the best of some rows on each set, in points, into a PNG file.

    Args:
        rows: their names and the folders of their cells. references: such as each encoder of the fusions alone.
    """
    rows = {name: folders for name, folders in rows.items() if read_cells(folders, "masked")}
    tasks = list_tasks(rows, "masked")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 1.3 * len(tasks), 1.4 + 0.27 * len(rows)), layout="constrained")
        for axes, (probe, (shown, _, _)) in zip(
            figure.subplots(1, 2, sharey=True), KINDS.items(), strict=True
        ):
            scores = [
                [mean_score(folders, "masked", task, probe) for task in tasks] for folders in rows.values()
            ]
            values = np.array(scores, dtype=float)  # None becomes nan
            best = values[[list(rows).index(name) for name in references]].max(0)
            draw_gaps(axes, 100 * (values - best))
            axes.set_title(shown, loc="left", fontweight="bold")
            axes.set_xticks(range(len(tasks)), tasks, rotation=30, ha="right", rotation_mode="anchor")
            axes.set_yticks(range(len(rows)), list(rows))
            axes.tick_params(which="both", length=0)
            axes.spines[:].set_visible(False)
        figure.supxlabel(f"points above or below the better of {' and '.join(references)}", fontsize=9)
        save_figure(figure, path)


def draw_gaps(axes: Any, gaps: np.ndarray[Any, Any]) -> None:
    """Draw a heat map of points above (blue) or below (red) something, with the number in each cell."""
    colors = matplotlib.colormaps["RdBu"].with_extremes(bad=PALE)
    axes.imshow(np.ma.masked_invalid(gaps), cmap=colors, vmin=-WIDE, vmax=WIDE, aspect="auto")
    for (row, column), gap in np.ndenumerate(gaps):
        if not np.isnan(gap):
            color = "white" if abs(gap) > 0.6 * WIDE else DARK
            text = f"{gap:+z.0f}" if abs(gap) >= 0.5 else "0"
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=DPI)
