"""Where the encoder of a checkpoint is from: bases, data, steps and what was measured, in plain values."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import metadata_load
from yaml import YAMLError

from uniaudio import __version__
from uniaudio.build.encoders import AVERAGED, find_checkpoint
from uniaudio.build.model import load_stage_recipes
from uniaudio.build.result_fingerprints import match_checkpoints
from uniaudio.config.model_spec import split_options
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_stored_run
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.suite_table import shorten_paths
from uniaudio.model.model_files import RANDOM, RANDOM_WEIGHTS, read_model_config
from uniaudio.report.answers import check_answers
from uniaudio.report.probe_scores import ScoreTable, is_in_folder, mark_model, read_scores
from uniaudio.report.result_files import shorten_model
from uniaudio.report.run_folder import read_json
from uniaudio.units import SECONDS_PER_HOUR

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
STATED = {"name", "steps", "stages", "bases", "datasets", "domains", "audio_hours", "results"}
PART = "encoder "  # what the names of the encoders' bases begin with


def collect_provenance(spec: str, whole: bool = False) -> dict[str, Any]:
    """Return the facts that a model card states; of a model that is no run, its name alone.

    Args:
        whole: the card is that of the whole model, so the decoder's base is named, too.

    Options of the MODEL belong to its name; results of the run are then those of other models.
    Data sets come from the recipes of the stages that were begun, results from ``probes.json`` and ``answers.json`` in
    the run folder. What a base was trained on counts too, where it is a run or an exported model itself. Paths are cut
    to their last part: a card tells nothing of the machine.

    Raises:
        UserError: when a recipe of a run cannot be read any more, for its data and their licences belong on the card.
    """
    nothing = {"steps": 0, "stages": [], "datasets": [], "domains": [], "audio_hours": None, "results": []}
    path, options = split_options(spec)
    ending = spec.removeprefix(path)
    name = (RANDOM if path.startswith(RANDOM) else "") + Path(path).name + ending
    bases = [describe_base("", {"path": path})]
    facts: dict[str, Any] = {"name": name, "uniaudio": __version__, "bases": bases, **nothing}
    folder = find_checkpoint(path)
    if folder is None and (stored := read_stored_facts(path)):
        return stored
    if folder is None:
        licenses = [] if has_random_weights(path) else [read_base_license(path)]
        return facts | {"base_models": find_hub_names([path]), "licenses": licenses}
    config = load_stored_run(folder / "config.yaml", folder.parent.parent)
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    stored = json.loads((folder / "bases.json").read_text(encoding="utf-8"))
    stored = {name: base for name, base in stored.items() if whole or name.startswith(PART)}
    run = folder.parent.parent
    facts |= {
        "name": run.resolve().name + (AVERAGED if path.endswith(AVERAGED) else "") + ending,
        "steps": state["step"],
        "stages": [stage.name for stage in config.stages[: state["stage"] + 1]],
        "bases": [describe_base(name, base) for name, base in stored.items()],
        "audio_hours": state["stage_seconds"] / SECONDS_PER_HOUR,
        "results": collect_results(run, "" if options else path),
    }
    facts |= collect_data(config, state["stage"] + 1)
    paths = [base.get("path", "") for base in stored.values()]
    earlier = collect_earlier_facts(paths)
    trained = [path for path in paths if path not in earlier and not has_random_weights(path)]
    licenses = [read_base_license(path) for path in trained]
    licenses += [data["license"] for data in facts["datasets"]]
    models = find_hub_names(trained)
    for known in earlier.values():
        facts["bases"] += [base for base in known["bases"] if base not in facts["bases"]]
        names = [data["name"] for data in facts["datasets"]]
        facts["datasets"] += [data for data in known["datasets"] if data["name"] not in names]
        facts["domains"] += [domain for domain in known["domains"] if domain not in facts["domains"]]
        licenses += known.get("licenses", ())
        models += known.get("base_models", ())
    metrics = [row["metric"] for row in facts["results"]]
    return facts | {
        "base_models": list(dict.fromkeys(models)),
        "licenses": list(dict.fromkeys(licenses)),
        "metrics": list(dict.fromkeys(metrics)),
    }


def collect_earlier_facts(paths: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the facts of those bases that are runs or exported models, by their paths."""
    known = [
        path for path in paths if path and (find_checkpoint(path) is not None or read_stored_facts(path))
    ]
    return {path: collect_provenance(path) for path in known}


def read_stored_facts(path: str) -> dict[str, Any]:
    """Return the facts that a folder written by this package states of its model, empty for other models."""
    if not (Path(path) / "config.json").is_file():
        return {}
    facts = read_model_config(Path(path)).get("provenance")
    return facts if isinstance(facts, dict) and facts.keys() >= STATED else {}


def find_hub_names(paths: Sequence[str]) -> list[str]:
    """Return those of some paths of models that are names on the Hub."""
    return [path for path in paths if HUB_NAME.fullmatch(path) and not Path(path).exists()]


def read_base_license(path: str) -> str:
    """Return the license that the card of a model in a local folder states; an empty text where none is known."""
    card = Path(path) / "README.md"
    try:
        stated = (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (OSError, ValueError, YAMLError):  # a card is no part of a model
        return ""
    return stated if isinstance(stated, str) else ""


def has_random_weights(path: str) -> bool:
    """Return whether weights were drawn at random: ``random:PATH``, or a local folder that says so of its own."""
    if path.startswith(RANDOM):
        return True
    folder = Path(path)
    return (folder / "config.json").is_file() and RANDOM_WEIGHTS.items() <= read_model_config(folder).items()


def describe_base(name: str, base: Mapping[str, str]) -> str:
    """Return a base as a line: a Hub name in full or a folder's last part, the beginning of its hash, its license.

    Of random weights the line says that they are; neither license nor hash of the model whose architecture they have is
    theirs.
    """
    given = base.get("path", "unknown")
    path = given.removeprefix(RANDOM)
    part = f"{name.removeprefix(PART)}: " if name else ""
    license = read_base_license(path) or "not stated with the weights"
    shown = path if find_hub_names([path]) else Path(path).name
    if has_random_weights(given):
        return f"{part}random weights, in the architecture of {shown}"
    digest = base.get("sha256") or base.get("revision") or ""
    return part + shown + (f" ({digest[:12]})" if digest else "") + f", licence: {license}"


def collect_data(config: RunConfig, stages: int) -> dict[str, Any]:
    """Return the data sets of the first stages and the domains of their tasks."""
    try:
        recipes = load_stage_recipes(config)[:stages]
    except UserError as problem:
        raise UserError(f"the model card should list the run's data, but {problem}") from problem
    sets: dict[str, dict[str, Any]] = {}
    hours: dict[str, dict[str, float | None]] = {}
    domains: list[str] = []
    for recipe in recipes:
        for entry in recipe.train:
            card = entry.dataset
            facts = {"name": card.name, "hub": card.load.hub, "license": card.license, "hours": None}
            data_of_set = sets.setdefault(card.name, {**facts, "tasks": []})
            hours.setdefault(card.name, {})[entry.split] = card.split(entry.split).hours
            for template in entry.templates:
                data_of_set["tasks"] = list(dict.fromkeys([*data_of_set["tasks"], template.task]))
                domains = list(dict.fromkeys([*domains, template.domain]))
    for name, by_split in hours.items():
        stated = [value for value in by_split.values() if value is not None]
        sets[name]["hours"] = round(sum(stated), 2) if len(stated) == len(by_split) else None
    return {"datasets": list(sets.values()), "domains": domains}


def collect_results(run: Path, spec: str) -> list[dict[str, str]]:
    """Return the rows of the results that a run folder holds, every one under the name of the model it was measured on.

    A file that is not there holds none. The name of the run stands for the exported weights alone: results of other
    checkpoints of the run are named by their step, and those of other models keep their own name.

    Args:
        spec: the checkpoint that is exported, as the run folder or a checkpoint in it; ``:ema``: its averages. Empty:
            none of them as it is.

    Raises:
        UserError: when a file in the place of the results cannot be read or holds something else.
    """
    file = run / "probes.json"
    table = read_scores(read_json(file), str(file), {}) if file.is_file() else ScoreTable()
    file = run / "answers.json"
    answers = check_answers(read_json(file), str(file)) if file.is_file() else {}
    signed = {str(entry["fingerprint"]) for entry in answers.values() if entry.get("fingerprint")}
    known = name_weights(run, spec, {*table.fingerprints.values(), *signed})
    short = shorten_paths(table.models)
    rows = []
    for task, models in table.scores.items():
        for model, probes in models.items():
            name = name_measured(short[model], run, table.fingerprints.get(model), known)
            if model not in table.fingerprints and is_in_folder(model, run):
                name = run.resolve().name
            measure = f"{', '.join(probes)} probe ({table.tasks[task].metric})"
            values = (f"{score.mean:.3f} ± {score.std:.3f}" for score in probes.values())
            rows.append((task, name, measure, ", ".join(values), table.tasks[task].metric))
    for task, entry in answers.items():
        fingerprint = entry.get("fingerprint")
        name = f"answers of {name_measured(shorten_model(entry), run, fingerprint, known)}"
        name = mark_model("answers", None) if fingerprint is None else name
        rows.append((task, name, entry["metric"], f"{entry['score']:.3f}", entry["metric"]))
    return [dict(zip(("set", "model", "measure", "value", "metric"), row, strict=True)) for row in rows]


def name_weights(run: Path, spec: str, fingerprints: Collection[str]) -> dict[str, str]:
    """Return the names of those fingerprints that checkpoints of a run have; the exported one has the run's name."""
    name, averaged = run.resolve().name, AVERAGED if spec.endswith(AVERAGED) else ""
    folder = find_checkpoint(spec) if spec else None
    exported = "" if folder is None else f"{folder.name}{averaged}"
    return {
        fingerprint: f"{name}{averaged}" if checkpoint == exported else f"{name}, {checkpoint}"
        for fingerprint, checkpoint in match_checkpoints(run, fingerprints).items()
    }


def name_measured(name: str, run: Path, fingerprint: str | None, known: Mapping[str, str]) -> str:
    """Return what the card calls a model: a checkpoint of the run, else its own name, marked where it is the run's."""
    if fingerprint is not None and fingerprint in known:
        return known[fingerprint]
    is_alike = name.removesuffix(AVERAGED).rpartition("/")[2] == run.resolve().name
    return mark_model(name, fingerprint) if is_alike else name
