"""Figures of a run as inline SVG that reads on light and on dark paper."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#8a8f98"  # readable on white and on near-black
COLORS = ("#4c78a8", "#f58518", "#54a24b", "#b279a2", "#e45756", "#72b7b2", "#9d755d", "#eeca3b")
STYLE = {
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "uniaudio",
    "legend.frameon": False,
}


def svg(figure: Figure, title: str) -> str:
    """Return a figure as an ``<svg>`` element that scales to its place and names itself for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, bbox_inches="tight", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def new_axes(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of our style; it belongs to no window system and to no global list."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height))
        return figure, figure.add_subplot()


def smoothed(values: Sequence[float], share: float = 0.7) -> list[float]:
    """Return the exponential moving average, corrected for its start."""
    result, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = share * mean + (1 - share) * value, share * weight + (1 - share)
        result.append(mean / weight)
    return result


def loss_curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw the loss per answer token of every task over the steps, raw and smoothed."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(7, 3.2)
        tasks = sorted({task for row in rows for task in row["tasks"]})
        for task, color in zip(tasks, COLORS * 5, strict=False):
            points = [(row["step"], row["tasks"][task]) for row in rows if task in row["tasks"]]
            steps, losses = [p[0] for p in points], [p[1] for p in points]
            axes.plot(steps, losses, color=color, alpha=0.25, linewidth=1)
            axes.plot(steps, smoothed(losses), color=color, linewidth=1.8, label=task)
        axes.set_xlabel("step")
        axes.set_ylabel("loss per answer token")
        axes.set_ylim(bottom=0)
        axes.legend(ncols=2)
        return svg(figure, "loss per answer token of every task over the steps")


def probe_bars(scores: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Draw one group of bars for each set and probe, one bar a model, with the spread as an error bar."""
    with matplotlib.rc_context(STYLE):
        groups = [(name, kind) for name in scores for kind in ("linear", "mlp", "knn")]
        models = list(next(iter(scores.values())))
        figure, axes = new_axes(max(5.0, 0.75 * len(groups)), 3.2)
        width = 0.8 / len(models)
        for index, (model, color) in enumerate(zip(models, COLORS * 5, strict=False)):
            results = [scores[name][model][kind] for name, kind in groups]
            places = [i + (index - (len(models) - 1) / 2) * width for i in range(len(groups))]
            spread = [r["std"] for r in results]
            axes.bar(
                places, [r["mean"] for r in results], width, yerr=spread, ecolor=INK, color=color, label=model
            )
        # the name of a set once, under the middle one of its probes
        axes.set_xticks(
            range(len(groups)),
            [f"{kind}\n{name}" if i % 3 == 1 else kind for i, (name, kind) in enumerate(groups)],
        )
        axes.set_ylim(0, 1.05)
        axes.set_ylabel("test accuracy")
        axes.legend(ncols=len(models), loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return svg(figure, "probe accuracy of every model")


def confusion(answers: Sequence[Mapping[str, Any]], most: int = 16) -> str:
    """Draw how often each true answer was answered with what; answers that are no label are put together."""
    labels = [label for label, _ in Counter(item["reference"] for item in answers).most_common(most)]
    labels.sort()
    columns = [*labels, "(other)"]
    counts = [[0] * len(columns) for _ in labels]
    for item in answers:
        if item["reference"] in labels:
            given = item["answer"] if item["answer"] in labels else "(other)"
            counts[labels.index(item["reference"])][columns.index(given)] += 1
    with matplotlib.rc_context(STYLE):
        size = 1.6 + 0.42 * len(columns)
        figure, axes = new_axes(size, size * 0.85)
        shares = [[n / max(sum(row), 1) for n in row] for row in counts]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, row in enumerate(counts):
            for j, n in enumerate(row):
                if n:
                    color = "white" if shares[i][j] > 0.5 else "#333"
                    axes.text(j, i, str(n), ha="center", va="center", color=color, fontsize=8)
        axes.set_xticks(range(len(columns)), columns, rotation=60, ha="right")
        axes.set_yticks(range(len(labels)), labels)
        axes.set_xlabel("answered")
        axes.set_ylabel("right")
        return svg(figure, "confusion matrix: right answers by row, given answers by column")
