"""Probes, answers and the page about a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from uniaudio.assemble.encoders import load_encoder
from uniaudio.assemble.models import LoadedModel, load_model, stage_recipes
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.errors import UserError
from uniaudio.evaluate.answers import answer_loss, answers_table, evaluate_entry
from uniaudio.evaluate.labelled import load_labelled
from uniaudio.evaluate.report import write_report
from uniaudio.evaluate.routes import read_choices, routes_tables, write_routes
from uniaudio.evaluate.table import Scores, probe_models, probe_table


def evaluate_recipe(
    loaded: LoadedModel, recipe: Recipe, max_examples: int | None
) -> dict[str, dict[str, Any]]:
    """Ask all evaluation sets of a recipe; results by ``dataset:template``."""
    settings = loaded.config.evaluate
    return {
        entry.name: evaluate_entry(
            loaded.model,
            loaded.format,
            entry,
            max_examples or settings.max_examples,
            settings.max_new_tokens,
            settings.batch_seconds,
        )
        for entry in recipe.evaluate
    }


def validation_losses(loaded: LoadedModel, recipe: Recipe, count: int) -> dict[str, float]:
    """Return the loss per answer token of each task over ``count`` examples of every evaluation set, without answers.

    Sets under a condition are left out: they measure robustness, not what is learned.
    """
    sums: dict[str, list[float]] = {}
    for entry in recipe.evaluate:
        if entry.condition is None:
            loss, tokens = answer_loss(
                loaded.model, loaded.format, entry, count, loaded.config.evaluate.batch_seconds
            )
            own = sums.setdefault(entry.template.task, [0.0, 0.0])
            own[0] += loss
            own[1] += tokens
    return {task: loss / tokens for task, (loss, tokens) in sums.items() if tokens}


def write_json(path: Path | None, data: Any) -> None:
    """Write results where a path was given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def run_probes(models: Sequence[str], data: Sequence[str], out: Path | None, seeds: int) -> Scores:
    """Probe models on labelled folders given as ``NAME=FOLDER``; print a table and write JSON."""
    console = Console()
    sets = []
    for item in data:
        name, equals, folder = item.partition("=")
        if not equals:
            raise UserError(f"--data {item}: write NAME=FOLDER")
        sets.append(load_labelled(name, Path(folder)))
    encoders = {spec: load_encoder(spec) for spec in models}
    scores = probe_models(encoders, sets, seeds, lambda text: console.print(f"probing {text}", style="dim"))
    console.print(probe_table(scores))
    write_json(out, scores)
    return scores


def run_evaluation(
    spec: str, recipe_name: str | None, out: Path | None, max_examples: int | None
) -> dict[str, Any]:
    """Ask a recipe's evaluation sets (default: those of the model's last stage); print a table and write JSON."""
    loaded = load_model(spec)
    recipe = load_recipe(recipe_name) if recipe_name else stage_recipes(loaded.config)[-1]
    if not recipe.evaluate:
        raise UserError(f"recipe {recipe.name} has no `evaluate` list")
    results = evaluate_recipe(loaded, recipe, max_examples)
    Console().print(answers_table(results))
    write_json(out, results)
    return results


def report_run(run: Path, out: Path | None) -> Path:
    """Write the page about a run from what its folder holds: metrics, and probes and answers where they were stored.

    Raises:
        UserError: when the folder holds no run.
    """
    if not (run / "metrics.jsonl").is_file():
        raise UserError(f"{run} holds no metrics.jsonl; give the output_dir of a run")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    probes, answers = (
        json.loads((run / name).read_text(encoding="utf-8")) if (run / name).is_file() else {}
        for name in ("probes.json", "answers.json")
    )
    finished = any(row.get("event") == "finished" for row in rows)
    facts = {
        "steps": max((row.get("step", 0) for row in rows), default=0),
        "finished": "yes" if finished else "no",
    }
    config_text = (run / "config.yaml").read_text(encoding="utf-8")
    return write_report(out or run / "report.html", run.name, rows, probes, answers, [], config_text, facts)


def show_routes(run: Path, out: Path | None, last: float) -> None:
    """Print what the encoder of a run chose by task, and write it as JSON and as a heat map."""
    routes = read_choices(run, last)
    console = Console()
    for table in routes_tables(routes):
        console.print(table)
    for file in write_routes(routes, out or run):
        console.print(str(file), highlight=False, soft_wrap=True)
