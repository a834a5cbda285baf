"""What a fused or routed encoder chose, by task: gates, experts, weak encoders, layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from uniaudio.errors import UserError
from uniaudio.evaluate.heat_maps import draw_tables
from uniaudio.evaluate.heat_tables import Cell, HeatTable
from uniaudio.outputs import write_json
from uniaudio.run_records import read_metrics


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


def build_routing_tables(routes: Mapping[str, Any]) -> list[HeatTable]:
    """Lay out one table for every group of choices: tasks by choices, then what is no choice."""
    extra = sorted({name for values in routes["values"].values() for name in values})
    tables = []
    for group, tasks in routes["groups"].items():
        choices = list(dict.fromkeys(choice for shares in tasks.values() for choice in shares))
        highest = max((share for shares in tasks.values() for share in shares.values()), default=0.0)
        rows = []
        for task, shares in tasks.items():
            others = routes["values"].get(task, {})
            cells = [
                Cell(f"{shares.get(c, 0.0):.2f}", shares.get(c, 0.0) / max(highest, 1e-9)) for c in choices
            ]
            cells += [Cell(f"{others[name]:.2f}" if name in others else "") for name in extra]
            rows.append((task, cells))
        caption = f"{group}: mean share by task, steps {routes['from_step']} to {routes['to_step']}"
        tables.append(HeatTable(caption, "task", [*choices, *extra], rows))
    return tables


def write_routes(routes: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write ``routes.json`` and ``routes.png`` and return their paths."""
    data, picture = folder / "routes.json", folder / "routes.png"
    write_json(data, routes)
    draw_tables(build_routing_tables(routes), picture)
    return data, picture
