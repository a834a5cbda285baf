"""Probe scores by task, model and probe, as ``uniaudio probe --out`` stores them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniaudio.config.model_spec import split_options
from uniaudio.errors import UserError

PROBES = {"linear": "linear", "mlp": "MLP", "knn": "kNN"}  # how the page writes them, and their order
RANDOM = "random:"  # before a model of random weights
ALL = "all sets"
ELSEWHERE = "other"  # the domain of a set of which nobody says one
FINGERPRINTS = "fingerprints"  # the key of stored results that holds those of the models


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
    """A mean, and its spread: the standard deviation over probe seeds (or, for kNN, over draws of the test set)."""

    mean: float
    std: float


@dataclass(frozen=True)
class ScoreTable:
    """``scores[task][model][probe]``; the higher the better.

    ``fingerprints`` tells by model which weights were measured; those of files that do not say so are missing.
    """

    tasks: Mapping[str, Task] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, Mapping[str, Score]]] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)

    @property
    def models(self) -> list[str]:
        """All models, in the order in which they first occur."""
        return list(dict.fromkeys(model for models in self.scores.values() for model in models))

    @property
    def probes(self) -> list[str]:
        """All probes: the usual ones first and in their order."""
        probes = {probe for models in self.scores.values() for scores in models.values() for probe in scores}
        usual = [probe for probe in PROBES if probe in probes]
        return [*usual, *sorted(probes - set(usual))]

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

    def averages(self, models: Sequence[str], probe: str) -> dict[str, dict[str, float]]:
        """Return ``{domain: {model: weighted mean}}``, and the mean over all tasks, also where only one domain is.

        A mean is taken over the tasks of which every one of the models has a score: models are compared on the same.
        """
        known = [t for t in self.tasks.values() if all(self.get(t.name, m, probe) for m in models)]
        domains = list(dict.fromkeys(task.domain for task in known))
        groups = {domain: [task for task in known if task.domain == domain] for domain in domains}
        groups = {**(groups if len(groups) > 1 else {}), **({ALL: known} if known else {})}
        return {
            domain: {model: self.weighted_mean(tasks, model, probe) for model in models}
            for domain, tasks in groups.items()
        }

    def weighted_mean(self, tasks: Iterable[Task], model: str, probe: str) -> float:
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
                model: {
                    probe: Score(float(value["mean"]), float(value.get("std") or 0.0))
                    for probe, value in probes.items()
                }
                for model, probes in models.items()
            }
        except (AttributeError, KeyError, TypeError, ValueError) as problem:
            raise UserError(
                f"{where}: '{name}' holds no probe scores ({{model: {{probe: {{mean, std}}}}}}); write the file "
                "with `uniaudio probe --out`"
            ) from problem
    return ScoreTable(tasks, scores, fingerprints)


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
    return ScoreTable(table.tasks, scores, fingerprints)


def find_disagreements(table: ScoreTable, other: ScoreTable) -> list[str]:
    """Return the models that both tables have, but with other scores of the same set."""
    return [
        model
        for model in table.models
        if any(
            model in other.scores.get(task, {}) and other.scores[task][model] != models.get(model)
            for task, models in table.scores.items()
            if model in models
        )
    ]


def merge_tables(tables: Sequence[ScoreTable]) -> ScoreTable:
    """Put tables together; where two have the same score, the later one holds."""
    tasks: dict[str, Task] = {}
    scores: dict[str, dict[str, dict[str, Score]]] = {}
    fingerprints: dict[str, str] = {}
    for table in tables:
        tasks.update(table.tasks)
        fingerprints.update(table.fingerprints)
        for task, models in table.scores.items():
            for model, probes in models.items():
                scores.setdefault(task, {}).setdefault(model, {}).update(probes)
    return ScoreTable(tasks, scores, fingerprints)


@dataclass(frozen=True)
class Roles:
    """Which model of a score table is which.

    Args:
        starts: of each run, the model that its training began with. runs: each run's own model. others: the rest.
    """

    starts: Mapping[str, str] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    others: Sequence[str] = ()

    @property
    def columns(self) -> list[str]:
        """Every model once: the starts, the runs, the others."""
        return list(dict.fromkeys([*self.starts.values(), *self.runs.values(), *self.others]))

    def start_of(self, model: str) -> str | None:
        """Return what a model is compared with: a run with its own start, any other model with the first start."""
        if model in self.starts.values():
            return None
        starts = [self.starts.get(run) for run, trained in self.runs.items() if trained == model]
        return next(iter([*starts, *self.starts.values()]), None)


def assign_roles(
    models: Sequence[str], runs: Mapping[str, Sequence[str]], starts: Mapping[str, Sequence[str]]
) -> Roles:
    """Tell the models of a score table apart.

    The start of a run is the model that its config names as an encoder; where none is, the first one that is no run's.
    A run without a model in the table has no start.

    Args:
        models: in the order of the table. runs: the models that are each run's own, see ``models_of_run``; the last one
            counts. starts: paths of the encoders in each run's config.
    """
    trained = {name: members[-1] for name, members in runs.items() if members}
    free = [model for model in models if model not in trained.values()]
    began: dict[str, str] = {}
    for name in trained:
        named = [model for model in free if model in starts.get(name, ())]
        if named or free:
            began[name] = [*named, *free][0]
    taken = {*began.values(), *trained.values()}
    return Roles(began, trained, [model for model in models if model not in taken])


def find_run_models(
    table: ScoreTable, folder: Path, match: Callable[[Path, Collection[str]], Collection[str]]
) -> list[str]:
    """Return the models of a table that are a run's own, in their order.

    A model with a fingerprint is a run's when a checkpoint of the run has it; another one, when its name is the path of
    the run folder or of a checkpoint in it.

    Args:
        match: returns those of some fingerprints that checkpoints of a run folder have.
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
    """Return a name for a model that is called like a run but is not, or not known to be, that run's."""
    if fingerprint is None:
        return f"{name} (weights not stated)"
    return f"{name} (other weights, {fingerprint[:8]})"


def is_in_folder(model: str, folder: Path) -> bool:
    """Return whether a model is a run folder or a checkpoint in it, and not one with options of its own."""
    if split_options(model)[1]:
        return False
    path = Path(model.removesuffix(":ema")).resolve()
    return path == folder.resolve() or folder.resolve() in path.parents
