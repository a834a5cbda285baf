"""Results beside runs: probe scores of all files in one table, answers by model, and the comparisons between them."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from uniaudio.data.recipe_entries import EvalEntry
from uniaudio.errors import UserError
from uniaudio.evaluate.forgetting import ScoreMatrix
from uniaudio.report.answers import check_answers, has_answers
from uniaudio.report.probe_scores import (
    FINGERPRINTS,
    Match,
    Roles,
    ScoreTable,
    assign_roles,
    find_disagreements,
    find_run_models,
    is_in_folder,
    mark_model,
    mark_namesakes,
    merge_tables,
    read_scores,
    rename_models,
)
from uniaudio.report.run_folder import RunRecord, read_json
from uniaudio.report.significance import (
    ScoreChange,
    Summary,
    compare_answer_sets,
    compare_probes,
    summarize_changes,
)
from uniaudio.run_records import describe_undefined_scores

ANSWERS, PROBES = "answers.json", "probes.json"  # in a run folder
AnswersByModel = dict[str, dict[str, dict[str, Any]]]  # model -> evaluation set -> result


def read_results(
    runs: Sequence[RunRecord],
    answers: Sequence[Path],
    against: Sequence[Path],
    match: Match,
    notes: list[str],
) -> tuple[AnswersByModel, AnswersByModel, list[tuple[Path, Any]]]:
    """Read the answers of the runs, those of other models, and the files with scores of other models.

    Answers in the place of a run's that another model gave stand with those of other models, under its own name.

    Args:
        notes: gets what is odd.
    """
    if len(answers) > len(runs):
        raise UserError(
            f"--answers is given {len(answers)} times for {len(runs)} run(s); give answers of other "
            "models with --against"
        )
    files = [*answers, *(run.folder / ANSWERS for run in runs[len(answers) :])]
    of_runs: AnswersByModel = {}
    others: AnswersByModel = {}
    for run, file in zip(runs, files, strict=True):
        if file not in answers and not file.is_file():
            continue
        stored = check_answers(read_json(file), str(file), notes)
        foreign = separate_foreign_answers(stored, run.folder, match)
        of_runs[run.name] = {name: entry for name, entry in stored.items() if name not in foreign}
        for name, entry in foreign.items():
            fingerprint = str(entry["fingerprint"])
            model = mark_model(shorten_model(entry), fingerprint)
            others.setdefault(model, {})[name] = entry
        if foreign:
            notes.append(
                f"{file}: {len(foreign)} of {len(stored)} sets were answered by weights of no "
                f"checkpoint of {run.name}, so they are shown under their own name"
            )
    scores = []
    for file in against:
        data = read_json(file)
        if has_answers(data):
            name = file.parent.name if file.stem == "answers" else file.stem
            is_taken = name in of_runs or name in others
            others[str(file) if is_taken else name] = check_answers(data, str(file), notes)
        else:
            scores.append((file, data))
    of_runs, others = (
        {name: entries for name, entries in models.items() if entries} for models in (of_runs, others)
    )
    return of_runs, others, scores


def describe_missing_results(
    runs: Sequence[RunRecord], probes: Sequence[Path], answers: Sequence[Path], evaluated: Collection[str]
) -> list[str]:
    """Return a sentence for each run without answers or probe scores, with the command that stores them.

    Args:
        probes, answers: the files that are read in place of those in the run folders.
        evaluated: names of the runs whose last recipe has evaluation sets; others have nothing to answer.
    """
    sentences = []
    for index, run in enumerate(runs):
        folder = shlex.quote(str(run.folder))
        commands = {}
        if run.name in evaluated and index >= len(answers) and not (run.folder / ANSWERS).is_file():
            commands["answers"] = f"uniaudio eval {folder} --out {folder}/{ANSWERS}"
        if not probes and not (run.folder / PROBES).is_file():
            commands["probe scores"] = f"uniaudio probe {folder} --data NAME=FOLDER --out {folder}/{PROBES}"
        sentences += [f"{run.name} has no {what}; to add them: {line}" for what, line in commands.items()]
    return sentences


def separate_foreign_answers(
    entries: Mapping[str, dict[str, Any]], run: Path, match: Match
) -> dict[str, dict[str, Any]]:
    """Return the results whose fingerprint no checkpoint of a run has; results without one are taken for the run's."""
    signed = {name: str(entry["fingerprint"]) for name, entry in entries.items() if entry.get("fingerprint")}
    known = match(run, set(signed.values()))
    return {name: entries[name] for name, fingerprint in signed.items() if fingerprint not in known}


def shorten_model(entry: Mapping[str, Any]) -> str:
    """Return the last part of the name of the model that answered a set."""
    return str(entry.get("model") or "another model").rstrip("/").rpartition("/")[2]


def merge_all_scores(
    runs: Sequence[RunRecord],
    files: Sequence[Path],
    others: Sequence[tuple[Path, Any]],
    domains: Mapping[str, str],
    match: Match,
    notes: list[str],
) -> tuple[ScoreTable, Roles]:
    """Put all probe scores into one table and tell its models apart.

    A run's own ``probes.json`` may call its models as it likes ("before", "after"): which of them is the run's is told
    by its fingerprint. There the run's model gets the name of its folder, and a name that another file gives to other
    scores is told apart by the run's. A model that is called like a run and is not that run's is marked.

    Args:
        notes: gets what is odd.
    """
    starts = {run.name: [e.get("path", "") for e in run.config.get("encoders", {}).values()] for run in runs}
    table, roles = ScoreTable(), Roles()
    if files:
        for file in files:
            scores = read_probe_file(read_json(file), str(file), domains, notes)
            table = merge_tables([table, mark_namesakes(table, scores)])
        table, members = match_models(table, runs, match)
        roles = assign_roles(table.models, members, starts, table.references)
        notes += [
            describe_foreign(", ".join(map(str, files)), run)
            for run in runs
            if table.models and not members[run.name]
        ]
    for run in runs:
        file = run.folder / PROBES
        if run.name in roles.runs or files or not file.is_file():
            continue
        stored = read_probe_file(read_json(file), str(file), domains, notes)
        scores, members = match_models(stored, [run], match)
        if scores.models and not members[run.name]:
            notes.append(describe_foreign(str(file), run))
        run_roles = assign_roles(scores.models, members, starts, scores.references)
        new = {model: str(run.folder) for model in run_roles.runs.values()}
        scores = rename_models(scores, new)
        clashes = {model: f"{model} ({run.name})" for model in find_disagreements(table, scores)}
        table = merge_tables([table, rename_models(scores, clashes)])
        roles = add_roles(roles, run_roles, new, clashes)
    for file, data in others:
        beside, _ = match_models(read_probe_file(data, str(file), domains, notes), runs, match)
        beside = mark_namesakes(table, beside)
        fresh = [model for model in beside.models if model not in table.models]
        table = merge_tables([beside, table])
        roles = replace(roles, others=[*roles.others, *fresh])
    return table, roles


def add_roles(roles: Roles, more: Roles, new: Mapping[str, str], clashes: Mapping[str, str]) -> Roles:
    """Return the roles with those of one more run.

    Args:
        new: of that run's models, their names. clashes: names that mean other models elsewhere, and those in their
            place.
    """
    began, best = (
        {name: clashes.get(model, model) for name, model in models.items()}
        for models in (more.starts, more.best)
    )
    rest = [clashes.get(model, model) for model in more.others]
    trained = {name: clashes.get(new[model], new[model]) for name, model in more.runs.items()}
    return Roles(
        {**roles.starts, **began},
        {**roles.runs, **trained},
        [*roles.others, *rest],
        {**roles.best, **best},
    )


def read_probe_file(data: Any, where: str, domains: Mapping[str, str], notes: list[str]) -> ScoreTable:
    """Read the probe scores of a file, see ``read_scores``.

    Args:
        notes: gets a sentence about each task that is not measured and has no scores.
    """
    table = read_scores(data, where, domains)
    for name, facts in data["tasks"].items():
        if isinstance(facts, Mapping):
            notes += [f"{where}: {note}" for note in describe_undefined_scores(name, facts)]
    return table


def match_models(
    table: ScoreTable, runs: Sequence[RunRecord], match: Match
) -> tuple[ScoreTable, dict[str, list[str]]]:
    """Return the models of a table that are each run's own, and the table with those marked that only look like it."""
    members = {run.name: find_run_models(table, run.folder, match) for run in runs}
    known = {model for names in members.values() for model in names}
    marked = {
        model: mark_model(model, table.fingerprints.get(model))
        for model in table.models
        if model not in known and any(is_called_like(model, run) for run in runs)
    }
    return rename_models(table, marked), members


def is_called_like(model: str, run: RunRecord) -> bool:
    """Return whether the page would show a model under the name of a run."""
    name = model.removesuffix(":ema").rstrip("/").rpartition("/")[2]
    return name in (run.name, run.folder.name) or is_in_folder(model, run.folder)


def describe_foreign(where: str, run: RunRecord) -> str:
    """Say that results hold none of a run's own weights."""
    return (
        f"{where}: none of its models has the weights of a checkpoint of {run.name}, so nothing is shown under "
        "that name; probe the run again"
    )


def compare_runs(
    runs: Sequence[RunRecord],
    table: ScoreTable,
    roles: Roles,
    names: Mapping[str, str],
    answers: AnswersByModel,
    others: AnswersByModel,
    entries: Mapping[str, EvalEntry],
) -> tuple[list[Summary], dict[str, list[ScoreChange]]]:
    """Compare each run's probes with its untrained encoder, at its best where that was measured, and its answers with
    another model's or the first run's.

    Where the encoder at its best is another one than the start, a second sentence tells the difference to the start.
    """
    scorings = {name: entry.template.scoring for name, entry in entries.items()}
    base = next(iter([*others, *answers]), None)
    summaries, changes = [], {}
    for run in runs:
        trained = roles.runs.get(run.name)
        baselines = [] if trained is None else roles.list_baselines(trained)
        probed = compare_probes(table, baselines[0], trained) if trained is not None and baselines else []
        answered = []
        if base is not None and base != run.name and run.name in answers:
            answered = compare_answer_sets({**answers, **others}[base], answers[run.name], scorings)
        changes[run.name] = answered
        if probed or answered:
            start = [name_baseline(baselines[0], roles, names)] if probed else []
            against = " and ".join(dict.fromkeys([*start, *([base] if answered and base else [])]))
            summary = summarize_changes(run.name, against, [*probed, *answered])
            also = [
                summarize_changes(
                    run.name, name_baseline(other, roles, names), compare_probes(table, other, trained)
                ).sentence
                for other in baselines[1:]
                if trained is not None
            ]
            summaries.append(replace(summary, also=also))
    return summaries, changes


def name_baseline(model: str, roles: Roles, names: Mapping[str, str]) -> str:
    """Return the name of an untrained encoder, with what it is where there are two."""
    role = roles.describe(model)
    return f"{names[model]} ({role})" if role else names[model]


def read_forgetting(runs: Sequence[RunRecord], match: Match, notes: list[str]) -> dict[str, ScoreMatrix]:
    """Read the score matrices that ``uniaudio forgetting`` stored in the run folders.

    Those of another run, by the fingerprints of the stages they were measured on, are left out with a note.

    Raises:
        UserError: when a file holds something else.
    """
    kept: dict[str, ScoreMatrix] = {}
    for run in runs:
        file = run.folder / "forgetting.json"
        matrices = read_json(file) if file.is_file() else {}
        if not isinstance(matrices, dict):
            raise UserError(f"{file}: holds no score matrices; write it with `uniaudio forgetting`")
        for name, data in matrices.items():
            try:
                matrix = ScoreMatrix.from_json(data)
            except (ValueError, TypeError) as problem:
                raise UserError(f"{file}: '{name}' is not a score matrix ({problem})") from problem
            stated = data.get(FINGERPRINTS) or {}
            if stated and not match(run.folder, set(stated.values())):
                notes.append(f"{file}: '{name}' was measured on a run other than {run.name} and is left out")
            else:
                kept[f"{run.name}: {name}" if len(runs) > 1 else name] = matrix
    return kept
