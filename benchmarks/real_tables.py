"""Tables over the cells of real runs, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from uniaudio.evaluate.probing.suite_table import PROBES

PARTS = ("trained", "unseen")
Rows = Mapping[str, Sequence[Path]]  # a row's name -> the folder of cells of each seed
CLOSE = 0.02  # of a score: a fusion within it has kept what the better encoder knows


def read_cells(folders: Sequence[Path], name: str) -> list[dict[str, Any]]:
    """Return the cells of this name that are done, one for each seed."""
    files = [folder / f"{name}.json" for folder in folders]
    return [json.loads(file.read_text()) for file in files if file.is_file()]


def write_number(values: Iterable[float | None], digits: int = 3) -> str:
    """Return the mean, with the standard deviation over seeds where there are several; nothing for no value."""
    known = [value for value in values if value is not None]
    if not known:
        return ""
    text = f"{statistics.mean(known):.{digits}f}"
    return text if len(known) == 1 else f"{text} ± {statistics.pstdev(known):.{digits}f}"


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def scores_of(cell: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """Return ``{task: {probe: {"mean", "std"}}}`` of a probe of one model."""
    return {task: next(iter(models.values())) for task, models in cell["scores"].items()}


def average(cell: Mapping[str, Any], probe: str, part: str) -> float | None:
    """Return a model's average over the tasks of a part."""
    return next(iter(cell["average"].values())).get(probe, {}).get(part)


def score(cell: Mapping[str, Any], task: str, probe: str) -> float | None:
    """Return a model's score of a task, None where the task does not have the probe."""
    measured = scores_of(cell).get(task, {}).get(probe)
    return None if measured is None else measured["mean"]


def lost(cell: Mapping[str, Any], start: Mapping[str, Any], probe: str) -> float | None:
    """Return forgetting: how many points the unseen tasks lost on average, those that gained counting as none."""
    unseen = [task for task, facts in cell["tasks"].items() if facts.get("unseen")]
    pairs = [(score(start, task, probe), score(cell, task, probe)) for task in unseen]
    drops = [max(0.0, before - after) for before, after in pairs if before is not None and after is not None]
    return 100 * statistics.mean(drops) if drops else None


def probe_table(rows: Rows, cell: str, start: Mapping[str, Any] | None) -> str:
    """Return averages over trained and unseen tasks for every probe, and the points that were forgotten."""
    columns = ["", *(f"{shown}, {part}" for shown in PROBES.values() for part in PARTS)]
    columns += ["forgotten, linear", "forgotten, kNN"]
    lines = []
    for name, folders in rows.items():
        cells = read_cells(folders, cell)
        numbers = [write_number(average(c, probe, part) for c in cells) for probe in PROBES for part in PARTS]
        forgotten = [
            "" if start is None else write_number((lost(c, start, probe) for c in cells), 1)
            for probe in ("linear", "knn")
        ]
        lines.append([name, *numbers, *forgotten])
    return make_table(columns, lines)


def task_table(rows: Rows, cell: str, probe: str) -> str:
    """Return the scores of every task by one probe."""
    cells = {name: read_cells(folders, cell) for name, folders in rows.items()}
    facts: dict[str, Any] = {}
    for of_row in cells.values():
        for one in of_row:
            facts |= one["tasks"]
    columns = ["", *(f"{task} (unseen)" if about.get("unseen") else task for task, about in facts.items())]
    lines = [
        [name, *(write_number(score(one, task, probe) for one in of_row) for task in facts)]
        for name, of_row in cells.items()
    ]
    return make_table(columns, lines)


def list_tasks(rows: Rows, cell: str) -> list[str]:
    """Return the tasks that any row was probed on."""
    cells = [one for folders in rows.values() for one in read_cells(folders, cell)]
    return list(dict.fromkeys(task for one in cells for task in one["tasks"]))


def mean_score(folders: Sequence[Path], cell: str, task: str, probe: str) -> float | None:
    """Return a row's score of a task, the mean of its seeds; None where it has none."""
    values = [score(one, task, probe) for one in read_cells(folders, cell)]
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def close_table(rows: Rows, references: Sequence[str], cell: str, probe: str) -> str:
    """Return, for every row, on how many tasks it is close to the best reference, and where it is furthest below it.

    Args:
        rows: also those of the references. references: names of rows, such as each encoder of a fusion alone.
    """
    best = {}
    for task in list_tasks(rows, cell):
        values = [mean_score(rows[name], cell, task, probe) for name in references]
        if known := [value for value in values if value is not None]:
            best[task] = max(known)
    lines = []
    for name, folders in rows.items():
        scores = {task: mean_score(folders, cell, task, probe) for task in best}
        below = {task: best[task] - value for task, value in scores.items() if value is not None}
        if below:
            close = sum(gap <= CLOSE + 1e-9 for gap in below.values())  # scores are read from decimal digits
            furthest = max(below, key=below.__getitem__)
            worst = f"{furthest} {-100 * below[furthest]:+.1f}"
            mean = statistics.mean(best[task] - gap for task, gap in below.items())
            lines.append([name, f"{close} of {len(below)}", worst, write_number([mean])])
    return make_table(["", f"within {100 * CLOSE:.0f} points", "furthest below", "mean"], lines)


def answer_table(rows: Rows) -> str:
    """Return the score of every evaluation set, with minutes, seconds of audio and loss of the training."""
    answers = {name: read_cells(folders, "answers") for name, folders in rows.items()}
    trainings = {name: read_cells(folders, "train") for name, folders in rows.items()}
    sets: dict[str, str] = {}
    for cells in answers.values():
        for cell in cells:
            sets |= {key: value["metric"] for key, value in cell.items() if isinstance(value, dict)}
    columns = ["", *(f"{key}, {metric}" for key, metric in sets.items()), "loss", "hours of audio", "minutes"]
    lines = []
    for name in rows:
        scores = [write_number(cell.get(key, {}).get("score") for cell in answers[name]) for key in sets]
        facts = [
            write_number((cell[key] for cell in trainings[name]), digits)
            for key, digits in (("loss", 2), ("audio_hours", 2), ("minutes", 1))
        ]
        lines.append([name, *scores, *facts])
    return make_table(columns, lines)


def stage_table(rows: Rows, stages: Mapping[str, str], probe: str) -> str:
    """Return the scores after every stage of the runs that have several.

    Args:
        stages: what a stage is called -> the cell with the probes at its end.
    """
    lines: list[list[str]] = []
    facts: dict[str, Any] = {}
    first = next(iter(stages.values()))
    for name, folders in rows.items():
        for stage, file in stages.items() if read_cells(folders, first) else ():
            cells = read_cells(folders, file)
            for cell in cells:
                facts |= cell["tasks"]
            if cells:
                scores = [write_number(score(cell, task, probe) for cell in cells) for task in facts]
                lines.append([f"{name}, after {stage}", *scores])
    return make_table(["", *facts], lines)
