"""The demo: generated sounds, miniature models, and the same code as a real run from end to end."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from uniaudio.assemble import LoadedModel, answer_question, evaluate_recipe, load_encoder, load_model, run_training
from uniaudio.config.run import RunConfig, load_run
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.data.recipe import load_recipe
from uniaudio.data.template import load_template
from uniaudio.demo.corpus import QUICK, Sizes, build_corpus
from uniaudio.errors import UserError
from uniaudio.evaluate.answers import answers_table
from uniaudio.evaluate.labelled import load_labelled
from uniaudio.evaluate.report import write_report
from uniaudio.evaluate.table import Scores, probe_models, probe_table
from uniaudio.miniature.whisper import save_miniature_whisper

# Set of the corpus -> (template that asks it, column that holds the answer, weight in the recipe).
QUESTIONS = {
    "sounds": ("environmental_sound", "label", 1.0),
    "instruments": ("instrument", "label", 1.0),
    "words": ("keyword_spotting", "label", 1.0),
    "digits": ("digit_string", "text", 2.0),
}

MADE_HERE = ("corpus", "recipe", "whisper", "checkpoints", "tensorboard")  # folders that a new demo replaces

Console_ = Console  # one console a run


def run_demo(out: Path, quick: bool = False) -> Path:
    """Build everything, train, probe before and after, ask three questions and write ``report.html``.

    Args:
        out: the run folder. An earlier demo in it is replaced; any other folder with files in it is refused.
        quick: a few clips and steps only, to see that every part works.

    Returns:
        The path of the report.

    Raises:
        UserError: when ``out`` holds something else.
    """
    console = Console()
    started = time.monotonic()
    prepare_folder(out)
    corpus = build_corpus(out / "corpus", sizes=QUICK if quick else Sizes())
    if "words" not in corpus:
        console.print("espeak-ng is not installed, so there is no speech: pip install 'uniaudio[speech]'")
    console.print(f"generated {', '.join(corpus)} in {out / 'corpus'}")
    config_path = write_config(out, corpus, quick)
    config = load_run(config_path)
    if run_training(config, None):
        raise UserError(f"the demo was stopped; start it again to see the report (it replaces {out})")
    scores = probe_before_and_after(out, corpus, seeds=1 if quick else 3, console=console)
    loaded = load_model(str(out))
    answers = evaluate_recipe(loaded, load_recipe(config.stages[0].recipe), None)
    console.print(answers_table(answers))
    asked = ask_three(loaded, corpus)
    for item in asked:
        console.print(f"{item['clip']}: {item['question']} -> {item['answer']} (truth: {item['reference']})")
    facts = {"minutes": round((time.monotonic() - started) / 60, 1), "quick": quick}
    report = finish(out, config, scores, answers, asked, facts)
    console.print(f"report: {report}")
    return report
