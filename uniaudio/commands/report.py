"""The page about one or several runs: what their folders hold, other results beside it, clips and embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from uniaudio.build.encoders import load_encoder
from uniaudio.build.model import load_stage_recipes
from uniaudio.build.result_fingerprints import match_checkpoints
from uniaudio.config.run_files import load_stored_run
from uniaudio.console import WorkProgress, announce, make_console
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import EvalEntry
from uniaudio.errors import UserError
from uniaudio.evaluate.embedding import embed_clips
from uniaudio.evaluate.forgetting import build_forgetting_table, summarize_matrix
from uniaudio.evaluate.heat_tables import HeatTable
from uniaudio.evaluate.probing.suite_table import shorten_paths
from uniaudio.evaluate.routing import build_routing_tables, read_choices
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.outputs import check_output_file
from uniaudio.report.answers import build_answer_rows, describe_answers, find_low_scores
from uniaudio.report.clip_players import Player, SoundBudget
from uniaudio.report.embedding_map import EmbeddingMap, LabelledClips, build_embedding_maps, select_clips
from uniaudio.report.label_figures import build_confusion_table, build_reliability
from uniaudio.report.page import ReportPage, write_page
from uniaudio.report.result_files import (
    AnswersByModel,
    compare_runs,
    describe_missing_results,
    merge_all_scores,
    read_forgetting,
    read_results,
)
from uniaudio.report.run_folder import RunRecord, compute_cost, describe_ending, read_run
from uniaudio.report.run_provenance import (
    collect_base_facts,
    collect_data_facts,
    collect_versions,
    find_config_differences,
)
from uniaudio.report.significance import summarize_loss
from uniaudio.report.wrong_answers import choose_wrong_answers, head_set

T = TypeVar("T")
CHUNK = 32  # clips embedded between two looks at the clock
LAST = 0.25  # share of the steps over which choices are averaged
MAP_PLAYERS = 8  # of each set


@dataclass(frozen=True)
class Wanted:
    """What goes on the page beside what the run folders hold.

    Args:
        probes: files with probe scores; default ``probes.json`` of each run. answers: of each run, in their order;
            default ``answers.json``. against: results of other models, probe scores or answers.
        questions: each with ``clip``, ``question``, ``answer`` and ``reference``. facts: to stand among the costs.
    """

    probes: Sequence[Path] = ()
    answers: Sequence[Path] = ()
    against: Sequence[Path] = ()
    audio: bool = True
    embedding_map: bool = True
    title: str = ""
    questions: Sequence[Mapping[str, str]] = ()
    facts: Mapping[str, object] = field(default_factory=dict)


def report_runs(folders: Sequence[Path], out: Path | None, wanted: Wanted) -> Path:
    """Write one page about runs and return its path, by default ``report.html`` in the first of them.

    What cannot be shown (a checkpoint or clips that are gone) is named on the page and does not end the report.

    Raises:
        UserError: when a folder holds no run, or a results file cannot be read or holds something else.
    """
    runs = [read_run(folder, name) for folder, name in zip(folders, run_names(folders), strict=True)]
    out = check_output_file(out or folders[0] / "report.html", "output")
    return write_page(build_report(runs, wanted), out)


def build_report(runs: Sequence[RunRecord], wanted: Wanted) -> ReportPage:
    """Read what belongs to the runs, and build all sections of the page; missing results are also announced."""
    notes: list[str] = []
    recipes_of = {run.name: load_run_recipes(run, notes) for run in runs}
    recipes = [recipe for run in runs for recipe in recipes_of[run.name]]
    evaluated = [name for name, of_run in recipes_of.items() if of_run and of_run[-1].evaluate]
    for sentence in describe_missing_results(runs, wanted.probes, wanted.answers, evaluated):
        announce(sentence)
        notes.append(sentence)
    entries = {entry.name: entry for recipe in recipes for entry in recipe.evaluate}
    run_answers, other_answers, other_scores = read_results(
        runs, wanted.answers, wanted.against, match_checkpoints, notes
    )
    table, roles = merge_all_scores(
        runs, wanted.probes, other_scores, find_domains(recipes), match_checkpoints, notes
    )
    names = shorten_paths(table.models) | {model: run for run, model in roles.runs.items()}
    summaries, changes = compare_runs(runs, table, roles, names, run_answers, other_answers, entries)
    sounds = SoundBudget() if wanted.audio else None
    wrong = choose_wrong_answers(run_answers, entries, sounds, notes)
    maps, players = (
        map_embeddings(runs, list(entries.values()), sounds, notes) if wanted.embedding_map else ([], {})
    )
    if sounds is not None and sounds.left_out:
        notes.append(f"{sounds.left_out} clips: the page has reached its limit of audio")
    matrices = read_forgetting(runs, match_checkpoints, notes)
    summarized = {summary.run for summary in summaries}
    return ReportPage(
        title=wanted.title or f"Report: {', '.join(run.name for run in runs)}",
        runs=runs,
        summaries=summaries,
        plain=summarize_losses(runs, summarized, matrices),
        answered=[text for run, results in run_answers.items() if (text := describe_answers(run, results))],
        low=[text for run, results in run_answers.items() for text in find_low_scores(run, results)],
        endings=[sentence for run in runs if (sentence := describe_ending(run))],
        table=table,
        roles=roles,
        names=names,
        answers=build_answer_rows({**run_answers, **other_answers}, changes),
        confusions=build_for_every_set(run_answers, build_confusion_table),
        reliabilities=build_for_every_set(run_answers, build_reliability),
        wrong=wrong,
        questions=wanted.questions,
        forgetting=[build_forgetting_table(name, matrix) for name, matrix in matrices.items()],
        forgotten={name: summarize_matrix(matrix) for name, matrix in matrices.items()},
        maps=maps,
        map_players=players,
        routes=[table for run in runs for table in build_run_routes(run)],
        costs={run.name: compute_cost(run) for run in runs},
        data=collect_data_facts(recipes, runs),
        bases=collect_base_facts(runs),
        differences=find_config_differences(runs) if len(runs) > 1 else (),
        versions=collect_versions(),
        facts=wanted.facts,
        notes=notes,
    )


def summarize_losses(
    runs: Sequence[RunRecord], summarized: Collection[str], matrices: Collection[str]
) -> list[str]:
    """Return a sentence about the loss of every run that has no summary.

    Args:
        summarized: names of the runs that have one. matrices: names of the score matrices, behind those of their runs.
    """
    return [
        summarize_loss(
            run.name,
            run.rows,
            has_matrix=any(len(runs) == 1 or name.startswith(f"{run.name}: ") for name in matrices),
        )
        for run in runs
        if run.name not in summarized
    ]


def run_names(folders: Sequence[Path]) -> list[str]:
    """Return short names of the runs, as much of their paths as tells them apart.

    Raises:
        UserError: when a folder is given twice.
    """
    paths = [str(folder.resolve()) for folder in folders]
    twice = [path for path in paths if paths.count(path) > 1]
    if twice:
        raise UserError(f"{twice[0]} is given twice; name every run once")
    short = shorten_paths(paths)
    return [short[path] for path in paths]


def load_run_recipes(run: RunRecord, notes: list[str]) -> list[Recipe]:
    """Read the recipes of a run's stages, or note why they cannot be."""
    if not run.config:
        notes.append(f"data of {run.name}: its folder has no config.yaml")
        return []
    try:
        return load_stage_recipes(load_stored_run(run.folder / "config.yaml", run.folder))
    except UserError as problem:
        notes.append(f"data of {run.name}: {problem}")
        return []


def find_domains(recipes: Sequence[Recipe]) -> dict[str, str]:
    """Return the domain of every dataset, from a template that asks about it."""
    domains: dict[str, str] = {}
    for recipe in recipes:
        for entry in (*recipe.train, *recipe.evaluate):
            domains.setdefault(entry.dataset.name, entry.templates[0].domain)
    return domains


def build_for_every_set(
    answers: AnswersByModel, make: Callable[[str, Mapping[str, Any]], T | None]
) -> list[T]:
    """Return what can be made of the results of every run on every set, under a heading each."""
    headed = [
        (head_set(answers, run, name), entry)
        for run, results in answers.items()
        for name, entry in results.items()
    ]
    return [made for heading, entry in headed if (made := make(heading, entry)) is not None]


def map_embeddings(
    runs: Sequence[RunRecord], entries: Sequence[EvalEntry], sounds: SoundBudget | None, notes: list[str]
) -> tuple[list[EmbeddingMap], dict[str, list[Player]]]:
    """Embed test clips of a few sets with the encoder of every run, and lay them out in two dimensions."""
    encoders: dict[str, AudioEncoder] = {}
    try:
        clips = select_clips(entries)
    except UserError as problem:
        notes.append(f"embedding map: {problem}")
        return [], {}
    for run in runs if clips else []:
        try:
            encoders[run.name] = load_encoder(str(run.folder))
        except UserError as problem:
            notes.append(f"embedding map of {run.name}: {problem}")
    console = make_console(stderr=True)
    maps = []
    for one in clips:
        for name, encoder in encoders.items():
            vectors = embed_in_chunks(encoder, one, f"{one.name}, {name}", console)
            if np.isfinite(vectors).all():
                maps += build_embedding_maps(name, one, vectors)
            else:
                notes.append(
                    f"embedding map of {name}: its encoder gives NaN or infinite values for {one.name}"
                )
    players = (
        {one.name: make_label_players(one, sounds) for one in clips} if maps and sounds is not None else {}
    )
    return maps, players


def embed_in_chunks(
    encoder: AudioEncoder, clips: LabelledClips, what: str, console: Console
) -> NDArray[np.float32]:
    """Return ``[C, E]``, a bar telling how far it is."""
    started = time.monotonic()
    vectors: list[NDArray[np.float32]] = []
    with WorkProgress(console, "clips") as progress:
        work = progress.begin(f"embedding {what}", len(clips.samples))
        for i in range(0, len(clips.samples), CHUNK):
            vectors.append(embed_clips(encoder, clips.samples[i : i + CHUNK]))
            progress.count(work, len(vectors[-1]))
    rate = len(clips.samples) / max(time.monotonic() - started, 1e-9)
    console.print(f"embedded {len(clips.samples)} clips of {what}, {rate:.0f} a second", style="dim")
    return np.concatenate(vectors)


def make_label_players(clips: LabelledClips, sounds: SoundBudget) -> list[Player]:
    """Return one clip of each of the first few labels."""
    labels = sorted(set(clips.labels))[:MAP_PLAYERS]
    return sounds.add_players((label, clips.samples[clips.labels.index(label)]) for label in labels)


def build_run_routes(run: RunRecord) -> list[HeatTable]:
    """Return how often the encoder of a run chooses its parts, where it chooses between any."""
    if not any("choices" in row for row in run.rows):
        return []
    return build_routing_tables(read_choices(run.folder, LAST))
