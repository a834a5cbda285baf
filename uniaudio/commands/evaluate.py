"""Answers of a run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from uniaudio.build.encoders import choose_device
from uniaudio.build.model import LoadedModel, load_model, load_stage_recipes
from uniaudio.build.result_fingerprints import sign_answers
from uniaudio.config.run import RunConfig
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import WorkProgress, format_number, make_console
from uniaudio.data.eval_examples import LONGEST_CLIP, EvalSamples, open_examples
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.data.recipe_entries import EvalEntry, open_entry
from uniaudio.data.sources.in_memory import make_unique
from uniaudio.data.sources.source_kinds import keep_sources_open
from uniaudio.distributed import explain_lost_processes, is_distributed, is_main
from uniaudio.errors import UserError, convert_to_user_error, prefix_user_errors
from uniaudio.evaluate.generation.entry_metrics import build_answers_table, evaluate_entry
from uniaudio.evaluate.generation.predictions import (
    PredictionSettings,
    explain_no_row,
    measure_losses,
    tokenize_labels,
)
from uniaudio.evaluate.metrics.challenge import build_challenge_table, collect_challenge_scores
from uniaudio.evaluate.metrics.text_metrics import require_metric
from uniaudio.outputs import write_json
from uniaudio.train.engines.accelerator import forget_launch

PROTOCOLS = ("own", "xares-llm")
SHORTEST_WINDOW = 30.0  # seconds
PATIENCE = timedelta(hours=2)  # a process that is done waits for the slowest
# what a launch file may ask for, for training
SPREADING = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP")


@contextlib.contextmanager
def track_set(
    progress: WorkProgress, name: str, rows: int | None, processes: int
) -> Iterator[Callable[[int], None]]:
    """Give a function that takes the number of rows of a set answered since; without a terminal, print a line at the
    end.

    Args:
        rows: of all processes; None: nobody knows. processes: that share them.
    """
    started, done = time.monotonic(), 0
    task = progress.begin(name, None if rows is None else -(-rows // processes))

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress.count(task, count)

    yield advance
    progress.update(task, total=done)  # the split may have fewer rows
    seconds = time.monotonic() - started
    if progress.shown and not progress.console.is_terminal:
        rate = format_number(done / max(seconds, 1e-3))
        progress.console.print(f"{name}: {done} rows in {format_number(seconds)} s, {rate} rows/s")


@contextlib.contextmanager
def join_processes(keep_group: bool = False) -> Iterator[torch.device]:
    """Join the processes that ``accelerate launch`` started, if any, and give this one's device.

    Weights are not spread, whatever the launch file says: nothing is trained.

    Args:
        keep_group: leave the process group open for what the caller does next.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield choose_device()
        return
    keep_group = keep_group or is_distributed()  # opened by a training before, in the same script
    launched = {variable: os.environ.pop(variable, None) for variable in SPREADING}
    cuda = torch.cuda.is_available()
    state = PartialState(cpu=not cuda, backend="nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        with explain_lost_processes():
            yield state.device
    finally:
        if not keep_group:
            state.destroy_process_group()
            forget_launch()
        os.environ.update({variable: value for variable, value in launched.items() if value is not None})


def make_prediction_settings(loaded: LoadedModel, **changes: Any) -> PredictionSettings:
    """Return how a model's evaluation sets are asked: as its config says, but for ``changes``.

    Long clips are cut into windows of the encoder's reach, but no shorter ones than ``SHORTEST_WINDOW`` and the longest
    clips that the run was trained on: chunks of an encoder that reaches less far are read together in training, too.
    """
    config, reach = loaded.config, loaded.model.encoder.reach
    window = LONGEST_CLIP
    if reach is not None:
        window = min(max(reach, SHORTEST_WINDOW, config.data.max_seconds or 0.0), LONGEST_CLIP)
    stated = config.evaluate
    settings = PredictionSettings(
        stated.max_new_tokens, stated.batch_seconds, window, repetition_penalty=stated.repetition_penalty
    )
    return replace(settings, **changes)


def get_row_limit(config: RunConfig, entry: EvalEntry, max_examples: int | None = None) -> int | None:
    """Return how many rows of a set are evaluated at most; None stands for all.

    The recipe's number holds against that of the config, and ``max_examples`` against both.
    """
    return max_examples or entry.max_examples or config.evaluate.max_examples


def check_evaluation_sets(recipe: Recipe, format: ChatFormat | None = None) -> None:
    """Open every evaluation set of a recipe before any is asked: one that cannot be asked costs no answers of others.

    Args:
        format: of the model, where the labels of closed sets are scored.

    Raises:
        UserError: naming a set that cannot be opened, keeps no rows, or has a label that is markup.
    """
    for entry in recipe.evaluate:
        opened, _ = open_entry(entry)
        if format is not None and opened.template.labels:
            with prefix_user_errors(entry.name):
                tokenize_labels(opened.template.labels, format)


def evaluate_recipe(
    loaded: LoadedModel,
    recipe: Recipe,
    settings: PredictionSettings,
    max_examples: int | None = None,
    progress: WorkProgress | None = None,
    samples: EvalSamples | None = None,
) -> dict[str, dict[str, Any]]:
    """Ask all evaluation sets of a recipe; results by ``dataset:template``.

    With ``settings.shared`` every process must call it, and all get the results.

    Args:
        max_examples: see ``get_row_limit``. samples: see ``open_examples``.

    Raises:
        UserError: before anything is asked, when a metric needs an extra that is not installed.
    """
    for entry in recipe.evaluate:
        require_metric(entry.template.scoring)
    progress = progress or WorkProgress(make_console(), "rows", shown=False)
    results = {}
    with progress:
        for entry in recipe.evaluate:
            examples = open_examples(entry, get_row_limit(loaded.config, entry, max_examples), samples)
            with track_set(progress, entry.name, examples.size, settings.share[1]) as advance:
                results[entry.name] = evaluate_entry(loaded.model, loaded.format, examples, settings, advance)
    return results


def drop_answers(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the figures alone, as they are written while training goes on."""
    shown = {name: {k: v for k, v in result.items() if k != "answers"} for name, result in results.items()}
    for result in shown.values():
        if "labels" in result:
            result["labels"] = {
                k: v for k, v in result["labels"].items() if k not in ("names", "confusion", "bins")
            }
    return shown


def compute_validation_losses(
    loaded: LoadedModel,
    recipe: Recipe,
    count: int,
    shared: bool = False,
    samples: EvalSamples | None = None,
) -> tuple[dict[str, float], list[str]]:
    """Return the loss per answer token of each task over ``count`` examples of every evaluation set, without answers.

    Sets under a condition are left out: they measure robustness, not what is learned. With ``shared`` every process
    must call it.

    Returns:
        The losses by task, and a sentence for each set that is left out because no row can be used.
    """
    sums: dict[str, list[float]] = {}
    left_out = []
    settings = make_prediction_settings(loaded, shared=shared)
    for entry in recipe.evaluate:
        if entry.condition is None:
            examples = open_examples(entry, count, samples)
            answers = measure_losses(loaded.model, loaded.format, examples, settings)
            if not answers.questions:
                left_out.append(f"{entry.name}: {explain_no_row(examples, answers)}")
            loss, tokens = answers.sum_losses()
            sums_of_task = sums.setdefault(entry.template.task, [0.0, 0.0])
            sums_of_task[0] += loss
            sums_of_task[1] += tokens
    return {task: loss / tokens for task, (loss, tokens) in sums.items() if tokens}, left_out


def write_answer_files(folder: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the answers to every set into a folder as JSON Lines, as scorers of other packages read them.

    A line has `id`, `prediction` and `references`, which are all right answers of the row. A file is named after its
    set; where two names become the same one, as those of ``a:b_c`` and ``a_b:c``, a number is put behind the later one.
    """
    names = make_unique(re.sub(r"[^\w.+-]", "_", name) for name in results)
    for file_name, result in zip(names, results.values(), strict=True):
        lines = [
            {
                "id": record["id"],
                "prediction": record["answer"],
                "references": record.get("references", [record["reference"]]),
            }
            for record in result["answers"]
        ]
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        # the name of a file may hold bytes that are not UTF-8; JSON has escapes for them
        (folder / f"{file_name}.jsonl").write_text(text, encoding="utf-8", errors="backslashreplace")


@keep_sources_open()
def run_evaluation(
    spec: str,
    recipe_name: str | None,
    out: Path | None,
    max_examples: int | None,
    protocol: str = "own",
    labels: bool = True,
    batch_seconds: float | None = None,
    trust: Trust = NO_TRUST,
    keep_group: bool = False,
    answers: Path | None = None,
) -> dict[str, Any]:
    """Ask a recipe's evaluation sets (default: those of the model's last stage); print tables and write JSON.

    Processes that were launched together share the rows out; the main one prints and writes.

    Args:
        protocol: ``own``: the results by name. ``xares-llm``: see ``evaluate/metrics/challenge.py``; the results are
            written under ``entries``.
        labels: score the labels of closed sets too. batch_seconds: audio of a batch, default that of the config.
        keep_group: see ``join_processes``. answers: folder for the answers, see ``write_answer_files``.

    Raises:
        UserError: for an unknown protocol, a recipe without sets, and what ``check_evaluation_sets`` and
            ``evaluate_recipe`` refuse; at the end, for sets of which no row can be used.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"--protocol {protocol}: give {' or '.join(PROTOCOLS)}")
    if answers is not None:
        with convert_to_user_error(f"--answers {answers}: the folder cannot be made", "name another one"):
            answers.mkdir(parents=True, exist_ok=True)
    recipe = load_recipe(recipe_name) if recipe_name else None
    with join_processes(keep_group) as device:
        loaded = load_model(spec, device, trust, keep_frames=True)
        if recipe is None and not loaded.config.stages:
            raise UserError(f"{spec} is not a run, so it has no recipe; name one after the model")
        recipe = recipe or load_stage_recipes(loaded.config)[-1]
        if not recipe.evaluate:
            raise UserError(f"recipe {recipe.name} has no `evaluate` list")
        check_evaluation_sets(recipe, loaded.format if labels else None)
        settings = make_prediction_settings(loaded, shared=True, labels=labels)
        if batch_seconds is not None:
            settings = replace(settings, batch_seconds=batch_seconds)
        console = make_console(quiet=not is_main())
        progress = WorkProgress(console, "rows", is_main())
        results = evaluate_recipe(loaded, recipe, settings, max_examples, progress)
        results = sign_answers(results, spec)
        console.print(build_answers_table(results))
        shown: dict[str, Any] = results
        if protocol == "xares-llm":
            shown = collect_challenge_scores(results)
            console.print(build_challenge_table(shown))
            shown["entries"] = results
        if out is not None and is_main():
            write_json(out, shown)
        if answers is not None and is_main():
            write_answer_files(answers, results)
    refuse_unanswered_sets(results)
    return shown


def refuse_unanswered_sets(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse sets of which no row could be used; the results of the others are printed and written by then.

    Raises:
        UserError: with the reason of each.
    """
    sentences = [
        f"{name}: {reason}"
        for name, result in results.items()
        if not result["answers"]
        for reason in result["undefined"].values()
    ]
    if sentences:
        raise UserError("; ".join(sentences))
