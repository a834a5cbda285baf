"""The result of a suite as tables: scores by task, averages by domain, layers, and what a run is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from uniaudio.config.model_spec import split_options
from uniaudio.console import format_difference, make_table
from uniaudio.data.skipped_rows import Skip
from uniaudio.evaluate.probing.lost_classes import LostClass, describe_lost_classes
from uniaudio.evaluate.probing.placeholder_classes import describe_placeholder_classes
from uniaudio.evaluate.probing.skipped_row_notes import describe_rows
from uniaudio.run_records import describe_undefined_scores

PROBES = {"linear": "linear", "mlp": "MLP", "knn": "kNN"}
WHITENED = "whitened"  # the key of stored results that says so; it is missing in those of earlier versions
REFERENCES = "references"  # the key of stored results that holds them by run
SHOWN_DIFFERENCE = 0.0005  # between two scores that are written differently
AT_BEST = "untrained, at its best"
AS_TRAINED = "untrained, with the run's settings"


@dataclass(frozen=True)
class Reference:
    """The names of the untrained encoder of a run, whether a table has scores of it or not.

    Args:
        start: it reads clips by the settings of the run. best: it reads them as its authors trained it; what a run has
            learned beyond that is the gain of its training. None where it is not known.
    """

    start: str | None = None
    best: str | None = None

    @property
    def names(self) -> list[str]:
        """Those that are known, the one that counts first."""
        return list(dict.fromkeys(name for name in (self.best, self.start) if name is not None))

    def rename(self, names: Mapping[str, str]) -> Reference:
        """Return it with other names for some models."""
        start, best = (None if name is None else names.get(name, name) for name in (self.start, self.best))
        return Reference(start, best)


def read_references(result: Mapping[str, Any]) -> dict[str, Reference]:
    """Return the references of stored results by run; those that state none have none."""
    stored = result.get(REFERENCES) or {}
    return {run: Reference(**roles) for run, roles in stored.items()}


def describe_roles(references: Mapping[str, Reference]) -> dict[str, str]:
    """Return in plain words what the untrained encoders of a table are, by their names."""
    roles = {name: AS_TRAINED for one in references.values() if (name := one.start) is not None}
    return roles | {name: AT_BEST for one in references.values() if (name := one.best) is not None}


def build_suite_tables(result: Mapping[str, Any]) -> list[Table]:
    """Lay out what ``run_suite`` returned.

    Differences of a run are to its untrained encoder, at its best and with the run's settings; those of other models,
    and of runs whose encoder is not there, to the first model.
    """
    roles = describe_roles(read_references(result))
    labels = {
        model: f"{name} ({roles[model]})" if model in roles else name
        for model, name in shorten_paths(sorted(result["models"])).items()
    }
    tables = [score_table(result, labels)]
    if len(result["tasks"]) > 1:
        tables.append(average_table(result, labels))
    return [*tables, *build_layer_tables(result, labels)] if "layers" in result else tables


def mark_whitened(result: Mapping[str, Any]) -> str:
    """Return what the title of a table ends with: that its scores are those of whitened embeddings, or nothing."""
    return ", whitened embeddings" if result.get(WHITENED) else ""


def score_table(result: Mapping[str, Any], labels: Mapping[str, str]) -> Table:
    """Return mean ± spread of every task, model and probe; below them UAR, where it is another than accuracy.

    A task that is not measured has a line of dashes, and so has a model that has no scores of a task.
    """
    seeds = f"{result['seeds']} seed{'s' if result['seeds'] > 1 else ''}"
    table = make_table(
        f"{result['suite'] or 'labelled folders'}, protocol {result['protocol']}, {seeds}{mark_whitened(result)}",
        "task",
        "domain",
        "metric",
        "model",
        *PROBES.values(),
        numbers=3,
    )
    baselines = find_baselines(result)
    for task, facts in result["tasks"].items():
        about = (f"{task} (unseen)" if facts.get("unseen") else task, facts["domain"] or "")
        if "undefined" in facts:
            table.add_row(*about, facts["metric"], "", *["–"] * len(PROBES))
            continue
        models = result["scores"][task]
        for metric in (facts["metric"], *list_other_metrics(models, facts["metric"])):
            scores = {model: read_metric(probes, metric) for model, probes in models.items()}
            for place, model in enumerate(result["models"]):
                others = list_measured(scores, baselines[model])
                cells = ["–"] * len(PROBES)
                if model in scores:
                    cells = [cell(scores[model].get(p), [other.get(p) for other in others]) for p in PROBES]
                # options on lines of their own: those of models that differ in them alone are seen in narrow terminals
                shown = labels[model].replace("?", "\n?").replace("&", "\n&")
                table.add_row(*about, metric if place == 0 else "", shown, *cells)
                about = ("", "")
    notes = [
        note
        for task, facts in result["tasks"].items()
        for note in (
            *describe_undefined_scores(task, facts),
            *describe_lost_classes(
                task,
                [LostClass(**one) for one in facts.get("lost_classes", ())],
                facts.get("folds") is not None,
                facts["kind"],
            ),
            *describe_rows(task, [Skip(**skip) for skip in facts["skipped"]], facts["notices"]),
            *describe_placeholder_classes(task, facts["placeholders"], result["suite"] is None),
        )
    ]
    if any(len(names) > 1 for names in baselines.values()):
        notes.insert(0, f"differences of runs from the encoder {AT_BEST}; {AS_TRAINED}")
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def read_metric(probes: Mapping[str, Mapping[str, Any]], metric: str) -> dict[str, Mapping[str, float]]:
    """Return mean and std of a metric by probe; those of the task's own metric where no others are stored."""
    return {name: score.get("metrics", {}).get(metric, score) for name, score in probes.items()}


def list_other_metrics(models: Mapping[str, Mapping[str, Any]], metric: str) -> list[str]:
    """Return which of accuracy and UAR a table of a task has besides its metric.

    The UAR is accuracy where all classes are equally frequent in the test clips; then it would only repeat it.
    """
    stored = [
        score["metrics"] for probes in models.values() for score in probes.values() if "metrics" in score
    ]
    if all(abs(each["uar"]["mean"] - each["accuracy"]["mean"]) < SHOWN_DIFFERENCE for each in stored):
        return []
    return [name for name in ("accuracy", "uar") if name != metric]


def find_baselines(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the models that each model is compared with, the one that counts first."""
    references = read_references(result)
    first = result["models"][0]
    baselines = {}
    for model in result["models"]:
        names = references[model].names if model in references else []
        measured = [name for name in names if name in result["models"]]
        baselines[model] = measured or ([first] if model != first else [])
    return baselines


def list_measured(scores: Mapping[str, Any], baselines: Sequence[str]) -> list[Any]:
    """Return what is known of the models that a model is compared with; nothing unless of all: a single difference
    would be taken for that from the first.
    """
    return [scores[name] for name in baselines] if all(name in scores for name in baselines) else []


def cell(score: Mapping[str, float] | None, baselines: Sequence[Mapping[str, float] | None] = ()) -> str:
    """Return "mean ± std", with the differences to other scores where there are any."""
    if score is None:
        return ""
    text = f"{score['mean']:.3f} ± {score['std']:.3f}"
    differences = [
        format_difference(score["mean"] - other["mean"], 3) for other in baselines if other is not None
    ]
    return f"{text} ({'; '.join(differences)})" if differences else text


def average_table(result: Mapping[str, Any], labels: Mapping[str, str]) -> Table:
    """Return the weighted averages of every model and probe: all tasks, and each domain; below them the tasks that
    they leave out, and the models that have none.
    """
    parts = list(
        dict.fromkeys(
            part for probes in result["average"].values() for averages in probes.values() for part in averages
        )
    )
    table = make_table(
        f"weighted averages{mark_whitened(result)}", "model", "probe", *parts, numbers=len(parts)
    )
    baselines = {model: names if len(names) > 1 else [] for model, names in find_baselines(result).items()}
    for model, probes in result["average"].items():
        for place, (probe, averages) in enumerate(probes.items()):
            others = [other.get(probe, {}) for other in list_measured(result["average"], baselines[model])]
            cells = [format_average(averages, part, others) for part in parts]
            table.add_row(labels[model] if place == 0 else "", PROBES[probe], *cells)
    unmeasured = [task for task, facts in result["tasks"].items() if "undefined" in facts]
    notes = [f"not measured, and in no average: {', '.join(unmeasured)}"] if unmeasured else []
    for model in result["models"]:
        missing = [task for task, facts in result["tasks"].items() if model in facts.get("not_scored", {})]
        if missing:
            notes.append(f"no averages of {labels[model]}, which has no scores of {', '.join(missing)}")
    if notes:
        table.caption, table.caption_justify = "\n".join(notes), "left"
    return table


def format_average(averages: Mapping[str, float], part: str, baselines: Sequence[Mapping[str, float]]) -> str:
    """Return an average, with the differences to those of a run's untrained encoders."""
    if part not in averages:
        return ""
    differences = [format_difference(averages[part] - other[part], 3) for other in baselines if part in other]
    return f"{averages[part]:.3f}" + (f" ({'; '.join(differences)})" if differences else "")


def build_layer_tables(result: Mapping[str, Any], labels: Mapping[str, str]) -> list[Table]:
    """Return for each task the scores of every hidden state, from the first to the frames."""
    tables = []
    for task, models in result["layers"].items():
        probes = [probe for probe in PROBES if probe in next(iter(models.values()))[0]]
        title = f"{task} by layer{mark_whitened(result)}"
        table = make_table(title, "model", "layer", *(PROBES[p] for p in probes), numbers=1 + len(probes))
        for model, states in models.items():
            for number, state in enumerate(states):
                cells = [cell(state[probe]) for probe in probes]
                table.add_row(labels[model] if number == 0 else "", str(number), *cells)
        tables.append(table)
    return tables


def shorten_paths(names: Sequence[str]) -> dict[str, str]:
    """Return the last parts of paths, as many as tell the names apart; what stands before a colon is kept, and so are
    options.
    """
    paths = {name: split_options(name)[0] for name in names}
    parts = {name: path.rpartition(":")[2].rstrip("/").split("/") for name, path in paths.items()}
    before = {name: path.rpartition(":")[0] for name, path in paths.items()}
    for count in range(1, max(map(len, parts.values()), default=0) + 1):
        short = {
            name: f"{before[name]}:{'/'.join(parts[name][-count:])}".removeprefix(":")
            + name.removeprefix(paths[name])
            for name in names
        }
        if len(set(short.values())) == len(names):
            return short
    return {name: name for name in names}
