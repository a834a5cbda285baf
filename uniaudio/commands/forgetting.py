"""The forgetting matrix of a run: every set probed and every question asked after every stage."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from uniaudio.build.encoders import build_encoder, choose_device, load_encoder
from uniaudio.build.model import load_model, load_stage_recipes
from uniaudio.build.result_fingerprints import fingerprint_checkpoint
from uniaudio.checks.named_paths import parse_folders
from uniaudio.commands.evaluate import check_evaluation_sets, evaluate_recipe, make_prediction_settings
from uniaudio.config.nearest import suggest_name
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_stored_run
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import make_console, print_warning
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import EvalEntry
from uniaudio.data.sources.source_kinds import keep_sources_open
from uniaudio.errors import UserError
from uniaudio.evaluate.forgetting import (
    START,
    ScoreMatrix,
    build_forgetting_table,
    build_summary_table,
    summarize_matrix,
)
from uniaudio.evaluate.generation.entry_metrics import describe_cut_answers, format_row_counts
from uniaudio.evaluate.heat_maps import draw_matrices
from uniaudio.evaluate.metrics.text_metrics import LOWER_IS_BETTER
from uniaudio.evaluate.probing.class_scores import ProbeScores
from uniaudio.evaluate.probing.clip_probes import KINDS
from uniaudio.evaluate.probing.held_probes import probe_held
from uniaudio.evaluate.probing.labelled_folder import hold_folders
from uniaudio.evaluate.probing.lost_classes import UnmeasurableTaskError
from uniaudio.evaluate.probing.task_rows import TaskRows
from uniaudio.outputs import check_output_folder, write_json
from uniaudio.report.probe_scores import FINGERPRINTS
from uniaudio.run_records import describe_undefined_scores
from uniaudio.train.checkpoint.folders import find_stage_ends
from uniaudio.train.checkpoint.integrity import BASES, CONFIG, MODEL, STATE


@keep_sources_open()
def measure_forgetting(
    run: Path,
    data: Sequence[str],
    out: Path | None,
    learned: Sequence[str] = (),
    answers: bool = True,
    max_examples: int | None = None,
    seeds: int = 3,
    trust: Trust = NO_TRUST,
) -> dict[str, Any]:
    """Measure a run after every stage; print tables, write ``forgetting.json`` and ``forgetting.png``.

    Args:
        data: labelled folders to probe, as ``NAME=FOLDER``; default: the guarded sets of the run's config.
        learned: ``NAME=STAGE`` where a set's name is not that of a dataset in the recipes.
        answers: also ask the evaluation sets of all stages' recipes.

    Raises:
        UserError: when no stage of the run is finished, an evaluation set cannot be opened, or there is nothing to
            measure.
    """
    console = make_console()
    ends, complaints = find_stage_ends(run, (MODEL, STATE, BASES, CONFIG))
    if not ends:
        damage = "".join(f"; {complaint}" for complaint in complaints)
        raise UserError(f"{run} has no checkpoint from the end of a stage{damage}; let a stage finish first")
    out = check_output_folder(out or run, "output")
    config = load_stored_run(ends[max(ends)] / "config.yaml", run, trust)
    config.require_trust(decoder=answers)
    recipes = load_stage_recipes(config)
    for recipe in recipes if answers else ():
        check_evaluation_sets(recipe)
    stages = {name_row(config.stages[index].name): path for index, path in sorted(ends.items())}
    for complaint in complaints:
        print_warning(complaint, console)
    folders = parse_folders(data)
    if not data and config.guard is not None:
        folders = {name: Path(folder) for name, folder in config.guard.sets.items()}
    first = find_first_trained(config, recipes, stages, learned, folders)
    if unknown := [name for name in folders if name not in first]:
        print_warning(
            f"no stage trains on a dataset called {' or '.join(unknown)}: these sets count as known "
            "at the start; if a stage does train on one of them, give --learned NAME=STAGE",
            console,
        )
    sets = hold_probed_sets(folders, answers, console)
    matrices: dict[str, ScoreMatrix] = {}
    if sets:
        rows = probe_rows(config, stages, sets, seeds, console)
        matrices |= probe_matrices(rows, [s.name for s in sets], first)
    if answers:
        matrices |= answer_matrix(config, recipes, stages, max_examples, console)
    if not matrices:
        raise UserError("nothing to measure: give --data NAME=FOLDER, or a recipe with an `evaluate` list")
    fingerprints = {name: fingerprint_checkpoint(str(path)) for name, path in stages.items()}
    return show_matrices(matrices, fingerprints, out, console)


def hold_probed_sets(folders: Mapping[str, Path], answers: bool, console: Console) -> list[TaskRows]:
    """Read the labelled folders to probe; what is left out of them is printed.

    Raises:
        UserError: see ``hold_folders``; where answers are measured, too, sets with too few rows are no reason.
    """
    try:
        return hold_folders(folders, lambda text: print_warning(text, console))
    except UnmeasurableTaskError as problem:
        if not answers:
            raise
        print_warning(f"nothing is probed: {problem}", console)
        return []


def probe_rows(
    config: RunConfig, stages: Mapping[str, Path], sets: Sequence[TaskRows], seeds: int, console: Console
) -> dict[str, dict[str, ProbeScores]]:
    """Return the probes of the starting encoder and of every stage's, by set; where a set cannot be scored, it has
    none, and the reason is printed.
    """
    rows = {}
    for name in (START, *stages):
        console.print(f"probing {name}", style="dim")
        encoder = (
            build_encoder(config).to(choose_device()).eval()
            if name == START
            else load_encoder(str(stages[name]), trust=config.trust)
        )
        measured = probe_held(encoder, sets, seeds)
        rows[name] = measured.scores
        unscored = [f"{one} cannot be scored: {reason}" for one, reason in measured.unscored.items()]
        for sentence in (*measured.notes, *unscored):
            print_warning(f"{name}: {sentence}", console)
        del encoder  # freed before the next one is loaded
    return rows


def name_row(stage: str) -> str:
    """Return the name of a stage's row in a matrix: ``start`` is that of the model before any training."""
    return f"stage {stage}" if stage == START else stage


def find_first_trained(
    config: RunConfig,
    recipes: Sequence[Recipe],
    stages: Mapping[str, Path],
    learned: Sequence[str],
    sets: Collection[str],
) -> dict[str, int]:
    """Return for each dataset the row of the stage that first trains on it; ``learned`` adds and overrides.

    Raises:
        UserError: when ``learned`` names a stage that was not measured, or none of the probed ``sets``.
    """
    names = list(stages)
    first: dict[str, int] = {}
    for row, recipe in iterate_recipes_by_row(config, recipes, stages):
        for entry in recipe.train:
            first.setdefault(entry.dataset.name, row)
    for item in learned:
        name, _, stage_name = item.partition("=")
        stage_name = name_row(stage_name)
        if stage_name not in names:
            raise UserError(f"--learned {item}: write NAME=STAGE with a stage of {', '.join(names)}")
        if name not in sets:
            raise UserError(
                f"--learned {item}: no set '{name}' is probed{suggest_name(name, sets)}; probed: "
                f"{', '.join(sets) or 'none'}"
            )
        first[name] = names.index(stage_name) + 1
    return first


def iterate_recipes_by_row(
    config: RunConfig, recipes: Sequence[Recipe], stages: Mapping[str, Path]
) -> Iterator[tuple[int, Recipe]]:
    """Yield the recipes of all stages with the row of a matrix that is the first to be trained on it.

    That of a skipped stage is the row of the first measured stage after it. Row 0 is the start.
    """
    row = 1
    for stage, recipe in zip(config.stages, recipes, strict=True):
        if row <= len(stages):
            yield row, recipe
        row += name_row(stage.name) in stages


def probe_matrices(
    rows: Mapping[str, Mapping[str, ProbeScores]], sets: Sequence[str], first: Mapping[str, int]
) -> dict[str, ScoreMatrix]:
    """Return one matrix for each kind of probe."""
    return {
        f"probe/{kind}": ScoreMatrix(
            tuple(rows),
            tuple(sets),
            tuple(
                tuple(scores[s][kind]["mean"] if s in scores else None for s in sets)
                for scores in rows.values()
            ),
            tuple(first.get(s) for s in sets),
        )
        for kind in KINDS
    }


def answer_matrix(
    config: RunConfig,
    recipes: Sequence[Recipe],
    stages: Mapping[str, Path],
    max_examples: int | None,
    console: Console,
) -> dict[str, ScoreMatrix]:
    """Return the scores of the answers after every stage; the starting model has no adapter, so it answers nothing."""
    entries_by_name: dict[str, EvalEntry] = {}
    for recipe in recipes:
        entries_by_name.update({entry.name: entry for entry in recipe.evaluate})
    if not entries_by_name:
        return {}
    union = Recipe("all", (), tuple(entries_by_name.values()), recipes[-1].path)
    rows: list[tuple[float | None, ...]] = [(None,) * len(entries_by_name)]
    for name, path in stages.items():
        console.print(f"asking {name}", style="dim")
        loaded = load_model(str(path), trust=config.trust)
        results = evaluate_recipe(loaded, union, make_prediction_settings(loaded), max_examples)
        del loaded  # freed before the next one is loaded
        rows.append(tuple(make_higher_better(results[entry]) for entry in entries_by_name))
        for entry, result in results.items():
            for note in describe_undefined_scores(entry, result):
                console.print(note, style="dim")
            if result["rows"] != result["examples"] or result["cut"]:
                counts = format_row_counts(result).replace("\n", ", ")
                note = f"{entry}: {counts}. {describe_cut_answers(entry, result)}".strip()
                console.print(note, style="dim")
    first: dict[tuple[str, str], int] = {}
    for row, recipe in iterate_recipes_by_row(config, recipes, stages):
        for line in recipe.train:
            for template in line.templates:
                first.setdefault((line.dataset.name, template.task), row)
    learned = tuple(
        first.get((entry.dataset.name, entry.template.task)) for entry in entries_by_name.values()
    )
    return {"answers": ScoreMatrix((START, *stages), tuple(entries_by_name), tuple(rows), learned)}


def make_higher_better(result: Mapping[str, Any]) -> float | None:
    """Return a score of which more is better: an error rate becomes 1 minus itself, at least 0; None for none."""
    if result["score"] is None:
        return None
    value = float(result["score"])
    return max(0.0, 1 - value) if result["metric"] in LOWER_IS_BETTER else value


def show_matrices(
    matrices: Mapping[str, ScoreMatrix], fingerprints: Mapping[str, str], out: Path, console: Console
) -> dict[str, Any]:
    """Print the tables and write JSON, with the fingerprint of every stage's checkpoint, and heat maps."""
    summaries = {name: summarize_matrix(matrix) for name, matrix in matrices.items()}
    for name, matrix in matrices.items():
        console.print(build_forgetting_table(name, matrix).lay_out())
    console.print(build_summary_table(summaries))
    result = {
        name: {
            **matrix.to_json(),
            "summary": asdict(summaries[name]),
            FINGERPRINTS: dict(fingerprints),
        }
        for name, matrix in matrices.items()
    }
    write_json(out / "forgetting.json", result)
    draw_matrices(matrices, out / "forgetting.png")
    for file in ("forgetting.json", "forgetting.png"):
        console.print(str(out / file), soft_wrap=True)
    return result
