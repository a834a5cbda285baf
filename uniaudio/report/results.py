"""Results beside runs: probe scores of all files in one table, answers by model, and the comparisons between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uniaudio.data.recipe import EvalEntry
from uniaudio.errors import UserError
from uniaudio.evaluate.forgetting import ScoreMatrix
from uniaudio.report.answers import checked_answers, holds_answers
from uniaudio.report.record import RunRecord, read_json
from uniaudio.report.scores import Roles, ScoreTable, disagreeing, merged, read_scores, renamed, roles_of
from uniaudio.report.verdict import Change, Summary, answer_changes, probe_changes, summarize

Answers = dict[str, dict[str, dict[str, Any]]]  # model -> evaluation set -> result


def read_results(
    runs: Sequence[RunRecord], answers: Sequence[Path], against: Sequence[Path]
) -> tuple[Answers, Answers, list[tuple[Path, Any]]]:
    """Read the answers of the runs, those of other models, and the files with scores of other models."""
    if len(answers) > len(runs):
        raise UserError(
            f"--answers is given {len(answers)} times for {len(runs)} run(s); "
            "give those of other models with --against"
        )
    files = [*answers, *(run.folder / "answers.json" for run in runs[len(answers) :])]
    own = {
        run.name: checked_answers(read_json(file), str(file))
        for run, file in zip(runs, files, strict=True)
        if file in answers or file.is_file()
    }
    others: Answers = {}
    scores = []
    for file in against:
        data = read_json(file)
        if holds_answers(data):
            name = file.parent.name if file.stem == "answers" else file.stem
            others[name if name not in own else str(file)] = checked_answers(data, str(file))
        else:
            scores.append((file, data))
    return own, others, scores


def all_scores(
    runs: Sequence[RunRecord],
    files: Sequence[Path],
    others: Sequence[tuple[Path, Any]],
    domains: Mapping[str, str],
) -> tuple[ScoreTable, Roles]:
    """Put all probe scores into one table and tell its models apart.

    A run's own ``probes.json`` may call its models as it likes ("before", "after"), so there the run's model gets the
    name of its folder, and a name that another file gives to other scores is told apart by the run's.
    """
    folders = {run.name: run.folder for run in runs}
    starts = {run.name: [e.get("path", "") for e in run.config.get("encoders", {}).values()] for run in runs}
    table, roles = ScoreTable(), Roles()
    if files:
        table = merged([read_scores(read_json(file), str(file), domains) for file in files])
        roles = roles_of(table.models, folders, starts)
    for run in runs:
        file = run.folder / "probes.json"
        if run.name in roles.runs or files or not file.is_file():
            continue
        own = read_scores(read_json(file), str(file), domains)
        found = roles_of(own.models, {run.name: run.folder}, starts)
        new = {model: str(run.folder) for model in found.runs.values()}
        own = renamed(own, new)
        clashes = {model: f"{model} ({run.name})" for model in disagreeing(table, own)}
        table = merged([table, renamed(own, clashes)])
        began = {name: clashes.get(model, model) for name, model in found.starts.items()}
        rest = [clashes.get(model, model) for model in found.others]
        trained = {name: new[model] for name, model in found.runs.items()}
        roles = Roles({**roles.starts, **began}, {**roles.runs, **trained}, [*roles.others, *rest])
    for file, data in others:
        beside = read_scores(data, str(file), domains)
        fresh = [model for model in beside.models if model not in table.models]
        table = merged([beside, table])
        roles = Roles(roles.starts, roles.runs, [*roles.others, *fresh])
    return table, roles


def compare(
    runs: Sequence[RunRecord],
    table: ScoreTable,
    roles: Roles,
    names: Mapping[str, str],
    own: Answers,
    others: Answers,
    asked: Mapping[str, EvalEntry],
) -> tuple[list[Summary], dict[str, list[Change]]]:
    """Compare each run's probes with its start, and its answers with another model's or the first run's."""
    scorings = {name: entry.template.scoring for name, entry in asked.items()}
    base = next(iter([*others, *own]), None)
    summaries, changes = [], {}
    for run in runs:
        probed = probe_changes(table, roles, run.name)
        answered = []
        if base is not None and base != run.name and run.name in own:
            answered = answer_changes({**own, **others}[base], own[run.name], scorings)
        changes[run.name] = answered
        if probed or answered:
            start = [names[roles.starts[run.name]]] if probed else []
            against = " and ".join(dict.fromkeys([*start, *([base] if answered and base else [])]))
            summaries.append(summarize(run.name, against, [*probed, *answered]))
    return summaries, changes


def forgetting_of(runs: Sequence[RunRecord]) -> dict[str, ScoreMatrix]:
    """Read the score matrices that ``uniaudio forgetting`` stored in the run folders.

    Raises:
        UserError: when a file holds something else.
    """
    found: dict[str, ScoreMatrix] = {}
    for run in runs:
        file = run.folder / "forgetting.json"
        matrices = read_json(file) if file.is_file() else {}
        if not isinstance(matrices, dict):
            raise UserError(f"{file}: holds no score matrices; write it with `uniaudio forgetting`")
        for name, data in matrices.items():
            try:
                found[f"{run.name}: {name}" if len(runs) > 1 else name] = ScoreMatrix.from_json(data)
            except (ValueError, TypeError) as problem:
                raise UserError(f"{file}: '{name}' is no score matrix ({problem})") from problem
    return found
