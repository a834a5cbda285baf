"""The result of a suite as tables: scores by task, averages by domain, and what each layer gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from uniaudio.data.skipped_rows import Skip
from uniaudio.evaluate.probing.task_rows import describe_rows

PROBES = {"linear": "linear", "mlp": "MLP", "knn": "kNN"}


def suite_tables(result: Mapping[str, Any]) -> list[Table]:
    """Lay out what ``run_suite`` returned; differences are to the first model."""
    labels = short_names(sorted(result["models"]))
    tables = [score_table(result, labels)]
    if len(result["tasks"]) > 1:
        tables.append(average_table(result, labels))
    return [*tables, *layer_tables(result, labels)] if "layers" in result else tables


def new_table(title: str, *columns: str, numbers: int) -> Table:
    """Return a table whose last columns hold numbers."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place >= len(columns) - numbers else "left")
    return table


def score_table(result: Mapping[str, Any], labels: Mapping[str, str]) -> Table:
    """Return mean ± spread of every task, model and probe."""
    table = new_table(
        f"{result['suite'] or 'labelled folders'}, protocol {result['protocol']}, {result['seeds']} seeds",
        "task",
        "domain",
        "metric",
        "model",
        *PROBES.values(),
        numbers=3,
    )
    for task, models in result["scores"].items():
        facts = result["tasks"][task]
        first = models[result["models"][0]]
        for place, model in enumerate(result["models"]):
            cells = [cell(models[model].get(p), first.get(p) if place else None) for p in PROBES]
            label = f"{task} (unseen)" if facts.get("unseen") else task
            about = (label, facts["domain"] or "", facts["metric"]) if place == 0 else ("", "", "")
            table.add_row(*about, labels[model], *cells)
    notes = [
        note
        for task, facts in result["tasks"].items()
        for note in describe_rows(task, [Skip(**skip) for skip in facts["skipped"]], facts["notices"])
    ]
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def cell(score: Mapping[str, float] | None, first: Mapping[str, float] | None) -> str:
    """Return "mean ± std", with the difference to the first model where one is given."""
    if score is None:
        return ""
    text = f"{score['mean']:.3f} ± {score['std']:.3f}"
    return text if first is None else f"{text} ({score['mean'] - first['mean']:+.3f})"


def average_table(result: Mapping[str, Any], labels: Mapping[str, str]) -> Table:
    """Return the weighted averages of every model and probe: all tasks, and each domain."""
    parts = list(
        dict.fromkeys(
            part for probes in result["average"].values() for averages in probes.values() for part in averages
        )
    )
    table = new_table("weighted averages", "model", "probe", *parts, numbers=len(parts))
    for model, probes in result["average"].items():
        for place, (probe, averages) in enumerate(probes.items()):
            cells = [f"{averages[part]:.3f}" if part in averages else "" for part in parts]
            table.add_row(labels[model] if place == 0 else "", PROBES[probe], *cells)
    return table


def layer_tables(result: Mapping[str, Any], labels: Mapping[str, str]) -> list[Table]:
    """Return for each task the scores of every hidden state, from the first to the frames."""
    tables = []
    for task, models in result["layers"].items():
        probes = [probe for probe in PROBES if probe in next(iter(models.values()))[0]]
        table = new_table(
            f"{task} by layer", "model", "layer", *(PROBES[p] for p in probes), numbers=1 + len(probes)
        )
        for model, states in models.items():
            for number, state in enumerate(states):
                cells = [cell(state[probe], None) for probe in probes]
                table.add_row(labels[model] if number == 0 else "", str(number), *cells)
        tables.append(table)
    return tables


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return the last parts of paths, as many as tell the names apart; what stands before a colon is kept."""
    parts = {name: name.rpartition(":")[2].rstrip("/").split("/") for name in names}
    before = {name: name.rpartition(":")[0] for name in names}
    for count in range(1, max(map(len, parts.values()), default=0) + 1):
        short = {name: f"{before[name]}:{'/'.join(parts[name][-count:])}".removeprefix(":") for name in names}
        if len(set(short.values())) == len(names):
            return short
    return {name: name for name in names}
