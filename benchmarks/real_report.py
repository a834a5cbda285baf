"""The tables and figures of real runs."""

from __future__ import annotations

from pathlib import Path

from real_figures import Arm, draw_fusions, draw_questions
from real_plan import PROTOCOLS, STAGE_CELLS, UNTRAINED, Plan
from real_runs import QUESTIONS, RUNS, Question
from real_tables import answer_table, close_table, probe_table, read_cells, stage_table, task_table


def find_arms(plan: Plan, question: Question) -> dict[str, list[Path]]:
    """Return the folders of the cells of every arm of a question, one for each seed."""
    return {
        shown: [plan.cells_of(name, seed) for seed in RUNS[name].seeds]
        for shown, name in question.arms.items()
    }


def write_tables(plan: Plan) -> str:
    """Return all tables as Markdown: one section for every question that has results."""
    untrained = {shown: [plan.out / "cells" / name] for name, (_, shown) in UNTRAINED.items()}
    sections = []
    for key, question in QUESTIONS.items():
        rows = find_arms(plan, question)
        trained = sum(bool(read_cells(cells, "train")) for cells in rows.values())
        if trained < (1 if key == "main" else 2):  # nothing to compare yet
            continue
        section = [f"### ({key}) {question.title}", answer_table(rows)]
        for protocol in PROTOCOLS:
            start = next(iter(read_cells([plan.out / "cells" / "before_best"], protocol)), None)
            section += [
                f"Probes, protocol `{protocol}`:",
                probe_table({**untrained, **rows}, protocol, start),
            ]
        for probe in ("knn", "linear"):
            section += [
                f"By set, {probe}, protocol `masked`:",
                task_table({**untrained, **rows}, "masked", probe),
            ]
        if question.references:
            for probe in ("knn", "linear"):
                section += [
                    f"Beside the best of {' and '.join(question.references)}, {probe}:",
                    close_table(rows, question.references, "masked", probe),
                ]
        if any(RUNS[name].stages for name in question.arms.values()):
            section += [
                "Linear probes after each stage:",
                stage_table(rows, STAGE_CELLS, "linear"),
            ]
        sections.append("\n\n".join(section))
    return "\n\n".join(sections)


def draw_figures(plan: Plan) -> None:
    """Draw OUT/questions.png, and OUT/fusion_NAME.png for each pair of encoders, where their probes are done."""
    starts = {name: read_cells([plan.out / "cells" / name], "masked") for name in UNTRAINED}
    moved: dict[str, dict[str, Arm]] = {}
    for key, question in QUESTIONS.items():
        rows = find_arms(plan, question)
        if question.references:
            if all(read_cells(rows[name], "masked") for name in question.references):
                draw_fusions(rows, question.references, plan.out / f"{key}.png")
            continue
        for shown, name in question.arms.items():
            start, cells = starts[RUNS[name].start], read_cells(rows[shown], "masked")
            if start and cells:
                moved.setdefault(question.title, {})[shown] = Arm(cells, start[0])
    if moved:
        draw_questions(moved, plan.out / "questions.png")
