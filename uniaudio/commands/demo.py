"""The demo: generated sounds, miniature models, and the same code as a real run from end to end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from uniaudio.build.encoders import load_encoder
from uniaudio.build.model import LoadedModel, load_model
from uniaudio.build.result_fingerprints import fingerprint_checkpoint, fingerprint_model, sign_answers
from uniaudio.commands.evaluate import evaluate_recipe, make_prediction_settings
from uniaudio.commands.report import Wanted, report_runs
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.console import make_console
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.data.recipe_entries import open_entry
from uniaudio.data.sources.base import IndexedSource
from uniaudio.demo.corpus import QUICK, Sizes, build_corpus
from uniaudio.demo.project_files import prepare_folder, write_files
from uniaudio.errors import UserError
from uniaudio.evaluate.generation.entry_metrics import build_answers_table
from uniaudio.evaluate.generation.generated_answers import answer_question
from uniaudio.evaluate.probing.labelled_folder import build_folder_suite
from uniaudio.evaluate.probing.suite_run import read_tasks, run_suite
from uniaudio.evaluate.probing.suite_table import build_suite_tables
from uniaudio.outputs import write_json
from uniaudio.report.probe_scores import FINGERPRINTS
from uniaudio.tiny.pretrain import use_one_thread

PROBED = ("sounds", "instruments", "digits")  # the sets with one label a clip


def run_demo(out: Path, quick: bool = False) -> Path:
    """Build everything, train, probe before and after, ask three questions, write ``report.html`` and return its path.

    Args:
        out: the run folder. An earlier demo in it is replaced; a folder with anything else in it is refused.
        quick: a few clips and steps only, to see that every part works.

    Raises:
        UserError: when ``out`` holds something else, or training was stopped.
    """
    console = make_console()
    started = time.monotonic()
    prepare_folder(out)
    corpus = build_corpus(out / "corpus", sizes=QUICK if quick else Sizes())
    if "digits" not in corpus:
        console.print("espeak-ng is not installed, so there are no spoken clips: pip install espeakng-loader")
    console.print(f"generated {', '.join(corpus)} in {out / 'corpus'}")
    config = load_run(write_files(out, corpus, quick))
    with use_one_thread():
        if run_training(config, None):
            raise UserError(f"the demo was stopped; start it again to replace the files in {out}")
        trained = time.monotonic()
        probes = probe_before_and_after(out, corpus, 1 if quick else 3, console)
    for table in build_suite_tables(probes):
        console.print(table)
    loaded = load_model(str(out))
    recipe = load_recipe(config.stages[0].recipe)
    answers = evaluate_recipe(loaded, recipe, make_prediction_settings(loaded))
    console.print(build_answers_table(answers))
    examples = answer_examples(loaded, recipe)
    for item in examples:
        console.print(f"{item['question']} -> {item['answer']} (right: {item['reference']})")
    write_json(out / "probes.json", probes)
    write_json(out / "answers.json", sign_answers(answers, str(out)))
    ended = time.monotonic()
    facts = {
        "encoder": "miniature Whisper, random weights before training",
        "minutes in all": round((ended - started) / 60, 1),
        "minutes of generating clips and training": round((trained - started) / 60, 1),
    }
    report = report_runs([out], None, Wanted(title="uniaudio demo", questions=examples, facts=facts))
    console.print(f"report: {report}")
    return report


def probe_before_and_after(
    out: Path, corpus: Mapping[str, Path], seeds: int, console: Console
) -> dict[str, Any]:
    """Probe the untrained and the trained encoder on the labelled sets."""
    start = str(out / "whisper")
    encoders = {"before": load_encoder(start), "after": load_encoder(str(out))}
    suite = build_folder_suite({name: corpus[name] for name in PROBED if name in corpus})
    result = run_suite(suite, read_tasks(suite), encoders, "masked", seeds, False, console)
    result[FINGERPRINTS] = {
        "before": fingerprint_model(start, encoders["before"]),
        "after": fingerprint_checkpoint(str(out)),
    }
    return result


def answer_examples(loaded: LoadedModel, recipe: Recipe) -> list[dict[str, Any]]:
    """Ask the first wording of three tasks about a test clip from the middle of each set."""
    answers = []
    for entry in recipe.evaluate[-3:]:
        entry, source = open_entry(entry)
        assert isinstance(source, IndexedSource)  # a manifest on disk
        row = source.row(source.size // 2)
        rendered = entry.render_question(row, entry.template)
        question = "<audio>".join(rendered.prompt)
        clip = Path(str(row.audio[0].source))
        answers.append(
            {
                "clip": clip.name,
                "question": question,
                "answer": answer_question(loaded.model, loaded.format, clip, question, 16),
                "reference": rendered.answer,
            }
        )
    return answers
