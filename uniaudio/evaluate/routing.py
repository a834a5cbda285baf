"""What a fused or routed encoder chose, by task: gates, experts, weak encoders, layers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from uniaudio.errors import UserError
from uniaudio.run_records import read_metrics

NUMBERED = 24  # cells of a heat map that still have room for their numbers, columns


def read_choices(run: Path, last: float) -> dict[str, Any]:
    """Average what the training rows of a run say was chosen, over the last share of its steps.

    Args:
        last: share of the steps, in (0, 1].

    Returns:
        ``from_step``, ``to_step``, ``groups`` {group: {task: {choice: share}}} (``gate``, ``weak``, ``load`` ...) and
        ``values`` {task: {name: mean}} of what is no choice (``routing entropy``, in nats).

    Raises:
        UserError: when the folder holds no run, or its encoder chooses nothing.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise UserError(f"{run} holds no metrics.jsonl; give the output_dir of a run")
    chosen = [row for row in read_metrics(file)[0] if "choices" in row]
    if not chosen:
        raise UserError(
            f"{run} has no routing decisions: its encoder does not choose between encoders, experts or layers"
        )
    end = chosen[-1]["step"]
    late = [row for row in chosen if row["step"] > end * (1 - last)]
    groups: dict[str, dict[str, dict[str, float]]] = {}
    values: dict[str, dict[str, float]] = {}
    for task in sorted({task for row in late for task in row["choices"]}):
        entries = [row["choices"][task] for row in late if task in row["choices"]]
        for name in entries[0]:
            mean = float(np.mean([entry[name] for entry in entries if name in entry]))
            group, slash, choice = name.partition("/")
            if slash:
                groups.setdefault(group, {}).setdefault(task, {})[choice] = mean
            else:
                values.setdefault(task, {})[name] = mean
    return {"from_step": late[0]["step"], "to_step": end, "groups": groups, "values": values}


def build_routes_tables(routes: Mapping[str, Any]) -> list[Table]:
    """Lay out one table for every group of choices, tasks by choices."""
    tables = []
    for group, tasks in routes["groups"].items():
        table = Table(
            title=f"{group}, steps {routes['from_step']} to {routes['to_step']}", title_justify="left"
        )
        choices = list(dict.fromkeys(choice for shares in tasks.values() for choice in shares))
        extra = sorted({name for choices_of in routes["values"].values() for name in choices_of})
        table.add_column("task", overflow="fold")
        for name in (*choices, *extra):
            table.add_column(name, justify="right", overflow="fold")
        for task, shares in tasks.items():
            others = routes["values"].get(task, {})
            cells = [f"{shares.get(choice, 0.0):.2f}" for choice in choices]
            cells += [f"{others[name]:.2f}" if name in others else "" for name in extra]
            table.add_row(task, *cells)
        tables.append(table)
    return tables


def draw_routes(routes: Mapping[str, Any], path: Path) -> None:
    """Draw a heat map task by choice for every group, one below the other, into a PNG file."""
    groups: Mapping[str, Mapping[str, Mapping[str, float]]] = routes["groups"]
    heights = [0.45 * len(tasks) + 1.1 for tasks in groups.values()]
    widest = max(len(shares) for tasks in groups.values() for shares in tasks.values())
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(max(5.0, 2.6 + 0.75 * widest), sum(heights)), layout="constrained")
        axes = np.atleast_1d(figure.subplots(len(groups), 1, height_ratios=heights))
        for place, (group, tasks) in zip(axes, groups.items(), strict=True):
            draw_group(place, group, tasks)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def draw_group(axes: Any, group: str, tasks: Mapping[str, Mapping[str, float]]) -> None:
    """Draw one heat map; white is 0, dark is the largest share of the group."""
    choices = list(dict.fromkeys(choice for shares in tasks.values() for choice in shares))
    shares = np.array(
        [[task_shares.get(choice, 0.0) for choice in choices] for task_shares in tasks.values()]
    )
    highest = max(float(shares.max()), 1e-9)
    axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=highest, aspect="auto")
    many = len(choices) > 4
    axes.set_xticks(
        range(len(choices)), choices, rotation=30 if many else 0, ha="right" if many else "center"
    )
    axes.set_yticks(range(len(tasks)), list(tasks))
    axes.set_title(group, loc="left", fontweight="bold")
    axes.tick_params(length=0)
    if len(choices) <= NUMBERED:
        for (row, column), share in np.ndenumerate(shares):
            color = "white" if share > 0.6 * highest else "#333333"
            axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=color)


def write_routes(routes: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write ``routes.json`` and ``routes.png`` and return their paths."""
    data, picture = folder / "routes.json", folder / "routes.png"
    folder.mkdir(parents=True, exist_ok=True)
    data.write_text(json.dumps(routes, indent=2) + "\n", encoding="utf-8")
    draw_routes(routes, picture)
    return data, picture
