"""Probe scores by task, model and probe, as ``uniaudio probe --out`` stores them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniaudio.config.model_spec import split_options
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.suite_table import (
    AS_TRAINED,
    AT_BEST,
    PROBES,
    REFERENCES,
    WHITENED,
    Reference,
    read_references,
)

RANDOM = "random:"  # before a model of random weights
ALL = "all sets"
ELSEWHERE = "other"  # the domain of a set of which nobody says one
USUAL_PROTOCOL = "masked"
FINGERPRINTS = "fingerprints"  # the key of stored results that holds those of the models


Match = Callable[[Path, Collection[str]], Collection[str]]  # those of some fingerprints that a run folder has


@dataclass(frozen=True)
class Task:
    """What is known of a probed set; ``data`` is the hash of its clips, ``weight`` its share in a mean."""

    name: str
    domain: str = ELSEWHERE
    metric: str = "accuracy"
    weight: float = 1.0
    license: str | None = None
    data: str | None = None


@dataclass(frozen=True)
class Score:
    """A mean, and its spread: the standard deviation over probe seeds (or, for kNN, over draws of the test set).

    Args:
        uar: unweighted average recall of the same guesses; None where the file holds none. It does not tell scores
            apart: files of earlier versions hold the same score without it.
    """

    mean: float
    std: float
    uar: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ScoreTable:
    """``scores[task][model][probe]``; the higher the better. For the names of probes see ``name_probe``.

    ``fingerprints`` tells by model which weights were measured; those of files that do not say so are missing.
    ``references`` tells by run which models are its untrained encoder.
    """

    tasks: Mapping[str, Task] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Mapping[str, Score]]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)
    references: Mapping[str, Reference] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """All models, in the order in which they first occur."""
        return list(dict.fromkeys(model for models in self.scores.values() for model in models))

    @property
    def probes(self) -> list[str]:
        """All probes: the usual ones first and in their order, then the others as they first occur."""
        probes = [probe for models in self.scores.values() for scores in models.values() for probe in scores]
        usual = [probe for probe in PROBES if probe in probes]
        return list(dict.fromkeys([*usual, *probes]))

    def get(self, task: str, model: str | None, probe: str) -> Score | None:
        """Return a score, or None where it was not measured."""
        return None if model is None else self.scores.get(task, {}).get(model, {}).get(probe)

    def tasks_of_probe(self, probe: str) -> list[Task]:
        """Return the tasks of which any model has a score by this probe: not every probe fits every kind of task."""
        return [
            task
            for name, task in self.tasks.items()
            if any(probe in scores for scores in self.scores[name].values())
        ]

    def compute_averages(self, models: Sequence[str], probe: str) -> dict[str, dict[str, float]]:
        """Return ``{domain: {model: weighted mean}}``, and the mean over all tasks, also where only one domain is.

        A mean is taken over the tasks of which every one of the models has a score: models are compared on the same.
        """
        known = [t for t in self.tasks.values() if all(self.get(t.name, m, probe) for m in models)]
        domains = list(dict.fromkeys(task.domain for task in known))
        groups = {domain: [task for task in known if task.domain == domain] for domain in domains}
        groups = {**(groups if len(groups) > 1 else {}), **({ALL: known} if known else {})}
        return {
            domain: {model: self.compute_weighted_mean(tasks, model, probe) for model in models}
            for domain, tasks in groups.items()
        }

    def compute_weighted_mean(self, tasks: Iterable[Task], model: str, probe: str) -> float:
        """Return sum(weight * score) / sum(weight) over tasks that all have a score."""
        pairs = [(task.weight, self.scores[task.name][model][probe].mean) for task in tasks]
        return sum(weight * mean for weight, mean in pairs) / sum(weight for weight, _ in pairs)


def read_scores(data: Any, where: str, domains: Mapping[str, str]) -> ScoreTable:
    """Read the results of probes with their ``tasks``.

    Args:
        where: how messages call the file. domains: of sets by name, for tasks that state none.

    Raises:
        UserError: when it holds something else.
    """
    if not isinstance(data, Mapping) or not all(
        isinstance(data.get(key), Mapping) for key in ("scores", "tasks")
    ):
        raise UserError(f"{where}: holds no probe scores; write it with `uniaudio probe --out`")
    tasks, scores = {}, {}
    stated = data.get(FINGERPRINTS)
    fingerprints = {str(k): str(v) for k, v in stated.items()} if isinstance(stated, Mapping) else {}
    for name, models in data["scores"].items():
        try:
            tasks[name] = parse_task(name, data["tasks"].get(name, {}), domains)
            scores[name] = {
                model: {name_probe(probe, data): parse_score(value) for probe, value in probes.items()}
                for model, probes in models.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise UserError(
                f"{where}: '{name}' holds no probe scores ({{model: {{probe: {{mean, std}}}}}}); write the file "
                "with `uniaudio probe --out`"
            ) from problem
    try:
        references = read_references(data)
    except (AttributeError, TypeError) as problem:
        raise UserError(
            f"{where}: '{REFERENCES}' must hold start and best by run; write the file with `uniaudio probe --out`"
        ) from problem
    return ScoreTable(tasks, scores, fingerprints, references)


def name_probe(probe: str, result: Mapping[str, Any]) -> str:
    """Return the name of a probe in a table: of whitened embeddings, or under another protocol, it is another probe,
    such as "whitened kNN", so that its scores are compared with no others.

    Args:
        result: what ``uniaudio probe`` stored; that of earlier versions is not whitened.
    """
    protocol = str(result.get("protocol") or USUAL_PROTOCOL)
    marks = [
        *([protocol] if protocol != USUAL_PROTOCOL else []),
        *([WHITENED] if result.get(WHITENED) else []),
    ]
    return " ".join([*marks, PROBES.get(probe, probe)]) if marks else probe


def parse_score(value: Mapping[str, Any]) -> Score:
    """Return a stored score."""
    uar = value.get("metrics", {}).get("uar")
    return Score(
        float(value["mean"]), float(value.get("std") or 0.0), None if uar is None else float(uar["mean"])
    )


def parse_task(name: str, facts: Mapping[str, Any], domains: Mapping[str, str]) -> Task:
    """Return what a file says of a task; for what it does not say, the usual."""
    return Task(
        name,
        domain=str(facts.get("domain") or domains.get(name, ELSEWHERE)),
        metric=str(facts.get("metric") or "accuracy"),
        weight=float(facts.get("weight") or 1.0),
        license=facts.get("license"),
        data=facts.get("data_sha256"),
    )


def rename_models(table: ScoreTable, names: Mapping[str, str]) -> ScoreTable:
    """Return the table with other names for some models."""
    scores = {
        task: {names.get(model, model): probes for model, probes in models.items()}
        for task, models in table.scores.items()
    }
    fingerprints = {names.get(model, model): text for model, text in table.fingerprints.items()}
    references = {names.get(model, model): one.rename(names) for model, one in table.references.items()}
    return ScoreTable(table.tasks, scores, fingerprints, references)


def find_namesakes(table: ScoreTable, other: ScoreTable) -> list[str]:
    """Return the models of another table that have the name of a model with other weights, by their fingerprints."""
    return [
        model
        for model, fingerprint in other.fingerprints.items()
        if table.fingerprints.get(model, fingerprint) != fingerprint
    ]


def mark_namesakes(table: ScoreTable, other: ScoreTable) -> ScoreTable:
    """Return another table in which no model has the name of a model of the first with other weights."""
    namesakes = find_namesakes(table, other)
    return rename_models(other, {model: mark_model(model, other.fingerprints[model]) for model in namesakes})


def find_disagreements(table: ScoreTable, other: ScoreTable) -> list[str]:
    """Return the models that both tables have, but with other weights, or another score of a set by the same probe."""
    namesakes = find_namesakes(table, other)
    return [
        model
        for model in table.models
        if model in namesakes
        or any(
            other.get(task, model, probe) not in (None, score)
            for task, models in table.scores.items()
            for probe, score in models.get(model, {}).items()
        )
    ]


def merge_tables(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Put tables together; where two have the same score, the later one holds."""
    tasks: dict[str, Task] = {}
    scores: dict[str, dict[str, dict[str, Score]]] = {}
    fingerprints: dict[str, str] = {}
    references: dict[str, Reference] = {}
    for table in tables:
        tasks.update(table.tasks)
        fingerprints.update(table.fingerprints)
        references.update(table.references)
        for task, models in table.scores.items():
            for model, probes in models.items():
                scores.setdefault(task, {}).setdefault(model, {}).update(probes)
    return ScoreTable(tasks, scores, fingerprints, references)


@dataclass(frozen=True)
class Roles:
    """Which model of a score table is which.

    Args:
        starts: of each run, the model that its training began with. runs: each run's own model. others: the rest.
        best: of each run, the same encoder at its best, where it was measured and is another one.
    """

    starts: Mapping[str, str] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[str] = ()
    best: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        """Every model once: the encoders at their best, the starts, the runs, the others."""
        ordered = [*self.best.values(), *self.starts.values(), *self.runs.values(), *self.others]
        return list(dict.fromkeys(ordered))

    def list_baselines(self, model: str) -> list[str]:
        """Return what a model is compared with, the one that counts first: a run with its untrained encoder at its best
        and as it started, any other model with that of the first run, and an untrained encoder with nothing.
        """
        if model in self.starts.values() or model in self.best.values():
            return []
        runs = [run for run, trained in self.runs.items() if trained == model]
        run = next(iter([*runs, *self.starts]), "")
        baselines = [roles[run] for roles in (self.best, self.starts) if run in roles]
        return baselines if runs else baselines[:1]

    def describe(self, model: str) -> str:
        """Return in plain words which untrained encoder a model is, where there are two; else an empty text."""
        if model in self.best.values():
            return AT_BEST
        return AS_TRAINED if self.best and model in self.starts.values() else ""


def assign_roles(
    models: Sequence[str],
    runs: Mapping[str, Sequence[str]],
    starts: Mapping[str, Sequence[str]],
    references: Mapping[str, Reference] | None = None,
) -> Roles:
    """Tell the models of a score table apart.

    The start of a run is the one that its references state, or else the model that its config names as an encoder;
    where none is, the first one that is no run's. A run without a model in the table has no start.

    Args:
        models: in the order of the table. runs: the models that are each run's own, see ``models_of_run``; the last one
            counts. starts: paths of the encoders in each run's config. references: by the name of a run's model.
    """
    trained = {name: members[-1] for name, members in runs.items() if members}
    free = [model for model in models if model not in trained.values()]
    began: dict[str, str] = {}
    best: dict[str, str] = {}
    for name, model in trained.items():
        reference = (references or {}).get(model, Reference())
        stated = [other for other in free if other == reference.start]
        named = [other for other in free if other in starts.get(name, ())]
        others = [other for other in free if other != reference.best]
        if begun := [*stated, *named, *others]:
            began[name] = begun[0]
        if reference.best in free and reference.best is not None and reference.best != began.get(name):
            best[name] = reference.best
    taken = {*began.values(), *trained.values(), *best.values()}
    return Roles(began, trained, [model for model in models if model not in taken], best)


def find_run_models(table: ScoreTable, folder: Path, match: Match) -> list[str]:
    """Return the models of a table that are a run's own, in their order.

    A model with a fingerprint is a run's when a checkpoint of the run has it; another one, when its name is the path of
    the run folder or of a checkpoint in it.
    """
    known = match(folder, table.fingerprints.values())
    return [
        model
        for model in table.models
        if (
            table.fingerprints[model] in known if model in table.fingerprints else is_in_folder(model, folder)
        )
    ]


def mark_model(name: str, fingerprint: str | None) -> str:
    """Return a name for a model that is called like a run, or another model, but is not, or not known to be, it."""
    if fingerprint is None:
        return f"{name} (weights not stated)"
    return f"{name} (other weights, {fingerprint[:8]})"


def is_in_folder(model: str, folder: Path) -> bool:
    """Return whether a model is a run folder or a checkpoint in it, and not one with options of its own."""
    if split_options(model)[1]:
        return False
    path = Path(model.removesuffix(":ema")).resolve()
    return path == folder.resolve() or folder.resolve() in path.parents
