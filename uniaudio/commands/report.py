"""The page about one or several runs: what their folders hold, other results beside it, clips and embeddings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
from uniaudio.console import WorkProgress, make_console
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import EvalEntry
from uniaudio.errors import UserError
from uniaudio.evaluate.embedding import embed_clips
from uniaudio.evaluate.forgetting import summarize_matrix
from uniaudio.evaluate.probing.suite_table import shorten_paths
from uniaudio.evaluate.routing import read_choices
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.outputs import check_output_file
from uniaudio.report.answers import (
    PLAYABLE,
    WrongAnswers,
    build_answer_rows,
    build_wrong_answer,
    choose_answers,
    describe_answers,
    find_low_scores,
)
from uniaudio.report.clip_players import Player, SoundBudget, find_examples
from uniaudio.report.embedding_map import EmbeddingMap, LabelledClips, build_embedding_maps, select_clips
from uniaudio.report.heat_tables import build_forgetting_table, build_routing_tables
from uniaudio.report.label_figures import build_confusion_table, build_reliability
from uniaudio.report.page import ReportPage, write_page
from uniaudio.report.result_files import (
    AnswersByModel,
    compare_runs,
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

T = TypeVar("T")
CHUNK = 32  # clips embedded between two looks at the clock
LAST = 0.25  # share of the steps over which choices are averaged
MAP_PLAYERS = 8  # of each set
CLIPS_HEARD = 120  # wrong answers with their clips, of all sets together


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
    names = run_names(folders)
    runs = [read_run(folder, name) for folder, name in zip(folders, names, strict=True)]
    out = check_output_file(out or folders[0] / "report.html", "output")
    notes: list[str] = []
    recipes = {run.name: load_run_recipes(run, notes) for run in runs}
    entries = {
        entry.name: entry for members in recipes.values() for recipe in members for entry in recipe.evaluate
    }
    run_answers, other_answers, other_scores = read_results(
        runs, wanted.answers, wanted.against, match_checkpoints, notes
    )
    every_recipe = [recipe for members in recipes.values() for recipe in members]
    table, roles = merge_all_scores(
        runs, wanted.probes, other_scores, find_domains(every_recipe), match_checkpoints, notes
    )
    model_names = shorten_paths(table.models)
    model_names |= {model: run for run, model in roles.runs.items()}
    summaries, changes = compare_runs(runs, table, roles, model_names, run_answers, other_answers, entries)
    sounds = SoundBudget()
    wrong = choose_wrong_answers(run_answers, entries, sounds if wanted.audio else None, notes)
    maps, players = map_embeddings(
        runs, list(entries.values()), sounds if wanted.audio else None, wanted, notes
    )
    if sounds.left_out:
        notes.append(f"{sounds.left_out} clips: the page holds as much sound as it may")
    matrices = read_forgetting(runs, match_checkpoints, notes)
    page = ReportPage(
        title=wanted.title or f"Report: {', '.join(names)}",
        runs=runs,
        summaries=summaries,
        plain=[
            summarize_loss(run.name, run.rows) for run in runs if run.name not in {s.run for s in summaries}
        ],
        answered=[text for run, results in run_answers.items() if (text := describe_answers(run, results))],
        low=[text for run, results in run_answers.items() for text in find_low_scores(run, results)],
        endings=[sentence for run in runs if (sentence := describe_ending(run))],
        table=table,
        roles=roles,
        names=model_names,
        answers=build_answer_rows({**run_answers, **other_answers}, changes),
        confusions=build_for_every_set(
            run_answers,
            lambda name, entry: build_confusion_table(
                name, entry.get("answers") or (), (entry.get("labels") or {}).get("names") or ()
            ),
        ),
        reliabilities=build_for_every_set(run_answers, build_reliability),
        wrong=wrong,
        questions=wanted.questions,
        forgetting=[build_forgetting_table(name, matrix) for name, matrix in matrices.items()],
        forgotten={name: summarize_matrix(matrix) for name, matrix in matrices.items()},
        maps=maps,
        map_players=players,
        routes=[
            table
            for run in runs
            if has_choices(run)
            for table in build_routing_tables(read_choices(run.folder, LAST))
        ],
        costs={run.name: compute_cost(run) for run in runs},
        data=collect_data_facts(every_recipe, runs),
        bases=collect_base_facts(runs),
        differences=find_config_differences(runs) if len(runs) > 1 else (),
        versions=collect_versions(),
        facts=wanted.facts,
        notes=notes,
    )
    return write_page(page, out)


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
        notes.append(f"data of {run.name}: its folder holds no config.yaml")
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
        for line in recipe.train:
            domains.setdefault(line.dataset.name, line.templates[0].domain)
        for entry in recipe.evaluate:
            domains.setdefault(entry.dataset.name, entry.template.domain)
    return domains


def group_answers(answers: AnswersByModel) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the results of every run on every set, under a heading each."""
    return [
        (f"{run}: {name}" if len(answers) > 1 else name, entry)
        for run, results in answers.items()
        for name, entry in results.items()
    ]


def build_for_every_set(
    answers: AnswersByModel, make: Callable[[str, Mapping[str, Any]], T | None]
) -> list[T]:
    """Return what can be made of the results of every run on every set."""
    return [made for name, entry in group_answers(answers) if (made := make(name, entry)) is not None]


def choose_wrong_answers(
    answers: AnswersByModel, entries: Mapping[str, EvalEntry], sounds: SoundBudget | None, notes: list[str]
) -> dict[str, WrongAnswers]:
    """Choose wrong answers of every set, the first few of them with their clips where the data are there.

    Args:
        sounds: None leaves out all clips.
    """
    shown_by_heading: dict[str, WrongAnswers] = {}
    sets = sum(len(results) for results in answers.values())
    playable = min(PLAYABLE, max(1, CLIPS_HEARD // max(sets, 1)))
    for run, results in answers.items():
        for name, entry in results.items():
            wrong = [item for item in entry.get("answers") or () if not item.get("right")]
            items = choose_answers(wrong)
            if not items:
                continue
            heading = f"{run}: {name}" if len(answers) > 1 else name
            players: dict[str, list[Player]] = {}
            if sounds is not None and name in entries:
                ids = [str(item["id"]) for item in items[:playable]]
                players = make_players(entries[name], ids, sounds, notes)
            shown = [build_wrong_answer(item, players.get(str(item["id"]), ())) for item in items]
            shown_by_heading[heading] = WrongAnswers(shown, len(wrong))
    return shown_by_heading


def make_players(
    entry: EvalEntry, ids: Sequence[str], sounds: SoundBudget, notes: list[str]
) -> dict[str, list[Player]]:
    """Return the clips of questions by id, or note why they cannot be found."""
    try:
        examples = find_examples(entry, ids)
    except UserError as problem:
        notes.append(f"clips of {entry.name}: {problem}")
        return {}
    if len(examples) < len(set(ids)):
        notes.append(
            f"{len(set(ids)) - len(examples)} clips of {entry.name}: their rows are gone or cannot be read"
        )
    made = {
        name: [sounds.add_player(name, clip) for clip in examples[name].clips]
        for name in ids
        if name in examples
    }
    return {name: [player for player in players if player is not None] for name, players in made.items()}


def map_embeddings(
    runs: Sequence[RunRecord],
    entries: Sequence[EvalEntry],
    sounds: SoundBudget | None,
    wanted: Wanted,
    notes: list[str],
) -> tuple[list[EmbeddingMap], dict[str, list[Player]]]:
    """Embed test clips of a few sets with the encoder of every run, and lay them out in two dimensions."""
    if not wanted.embedding_map or not entries:
        return [], {}
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
            maps += build_embedding_maps(
                name, one, embed_in_chunks(encoder, one, f"{one.name}, {name}", console)
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
    made = [sounds.add_player(label, clips.samples[clips.labels.index(label)]) for label in labels]
    return [player for player in made if player is not None]


def has_choices(run: RunRecord) -> bool:
    """Return whether the encoder of a run chooses between parts."""
    return any("choices" in row for row in run.rows)
