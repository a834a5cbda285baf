"""What a run answered: figures by evaluation set, and what is said first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniaudio.errors import UserError
from uniaudio.evaluate.metrics.class_averages import CLASS_METRICS
from uniaudio.evaluate.metrics.text_metrics import LOWER_IS_BETTER, list_class_companions
from uniaudio.report.significance import ScoreChange, get_score_interval
from uniaudio.run_records import describe_undefined_scores, is_number

NAMED = 3  # sets that a sentence names; of more it gives the range
# of the scored labels, with their titles in the table
LABEL_FIGURES = {"accuracy": "label accuracy", "uar": "label UAR", "map": "label mAP", "ece": "ECE"}


@dataclass(frozen=True)
class AnswerRow:
    """The stored results of one model on one evaluation set, and what follows from them.

    Args:
        interval: 95 %, of the score; None where it is not known. labels: figures of the scored labels, see
            ``LABEL_FIGURES``. change: against the model that the answers are compared with. companions: of accuracy,
            UAR and macro-F1 those that are not the metric.
    """

    name: str
    model: str
    entry: Mapping[str, Any]
    interval: tuple[float, float] | None
    labels: Mapping[str, float]
    change: ScoreChange | None
    companions: Mapping[str, float]


def check_answers(data: Any, where: str, notes: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return what ``uniaudio eval --out`` stored: ``{set: result}``, also from under ``entries`` of a protocol's file.

    Sets whose metric is undefined have no score that could be shown, and are left out.

    Args:
        notes: gets a sentence about each of these.

    Raises:
        UserError: when it is something else.
    """
    entries = get_entries(data)
    for name, entry in entries.items():
        if not is_result(entry):
            raise UserError(
                f"{where}: '{name}' holds no metric and score; write it with `uniaudio eval --out`"
            )
        if notes is not None:
            notes += [f"{where}: {note}" for note in describe_undefined_scores(name, entry)]
    return {name: entry for name, entry in entries.items() if entry["score"] is not None}


def get_entries(data: Any) -> dict[str, Any]:
    """Return the mapping of a results file that holds a result for each evaluation set; of no mapping a bad one."""
    if not isinstance(data, dict):
        return {"": None}
    entries = data.get("entries")
    return entries if "protocol" in data and isinstance(entries, dict) else data


def is_result(entry: Any) -> bool:
    """Return whether an entry of a results file holds a metric and its score as a number, or none for undefined."""
    if not isinstance(entry, dict) or not {"metric", "score"} <= set(entry):
        return False
    return entry["score"] is None or is_number(entry["score"])


def has_answers(data: Any) -> bool:
    """Return whether a results file holds answers rather than probe scores."""
    return any(is_result(entry) for entry in get_entries(data).values())


def build_answer_rows(
    answers: Mapping[str, Mapping[str, Mapping[str, Any]]], changes: Mapping[str, Sequence[ScoreChange]]
) -> list[AnswerRow]:
    """Return the figures by evaluation set, the models of a set one below the other.

    Args:
        answers: ``{model: {set: result}}``. changes: of each model against the one compared with.
    """
    rows = []
    for name in dict.fromkeys(name for results in answers.values() for name in results):
        for model, results in answers.items():
            if name not in results:
                continue
            entry = results[name]
            stored = entry.get("labels") or {}
            labels = {key: float(stored[key]) for key in LABEL_FIGURES if stored.get(key) is not None}
            change = next((c for c in changes.get(model, ()) if c.task == name), None)
            companions = list_class_companions(entry)
            rows.append(AnswerRow(name, model, entry, get_score_interval(entry), labels, change, companions))
    return rows


def describe_answers(run: str, results: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a sentence with the scores of a run's answers, the lowest and the highest of each metric; empty without
    any.
    """
    by_metric: dict[str, list[tuple[float, str]]] = {}
    for name, entry in results.items():
        by_metric.setdefault(str(entry["metric"]), []).append((float(entry["score"]), name))
    parts = []
    for metric, scores in by_metric.items():
        if len(scores) <= NAMED:
            parts.append(f"{metric} " + ", ".join(f"{score:.3f} on {name}" for score, name in scores))
        else:
            (low, lowest), (high, highest) = min(scores), max(scores)
            parts.append(
                f"{metric} from {low:.3f} ({lowest}) to {high:.3f} ({highest}) on {len(scores)} sets"
            )
    return f"Answers of {run}: {'; '.join(parts)}." if parts else ""


def find_low_scores(run: str, results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each kind of score of a run that is low: answers and labels that are no better than always
    giving the most frequent right answer, and error rates of 1 or more.

    A score is no better where its 95 % interval reaches down to chance.
    """
    answered, labelled, errors = [], [], []
    for name, entry in results.items():
        score, metric = float(entry["score"]), str(entry["metric"])
        chance = compute_chance(entry)
        of_metric = compute_chance(entry, metric)
        labels = entry.get("labels") or {}
        if metric in LOWER_IS_BETTER and score >= 1:
            errors.append(f"{name} ({metric} {score:.3f})")
        if metric in ("accuracy", *CLASS_METRICS) and (of_metric or not score):
            answered += [compare_with_chance(name, score, get_score_interval(entry), of_metric)]
        if labels.get("accuracy") is not None and chance:
            labelled += [compare_with_chance(name, labels["accuracy"], labels.get("interval"), chance)]
    kinds = {
        f"Answers of {run} are no better than chance on": answered,
        f"The likeliest labels of {run} are no better than chance on": labelled,
        f"Answers of {run} have at least as many errors as the right answers have words or characters on": errors,
    }
    return [f"{beginning} {', '.join(filter(None, sets))}." for beginning, sets in kinds.items() if any(sets)]


def compute_chance(entry: Mapping[str, Any], metric: str = "accuracy") -> float | None:
    """Return the accuracy, UAR or macro-F1 of always giving the most frequent right answer of a closed set; None where
    a question has several right labels, or the set is open.

    With the share p of the most frequent of C answers that occur, its class alone has a recall, 1, and an F1,
    2 p / (1 + p).
    """
    names = (entry.get("labels") or {}).get("names") or ()
    references = Counter(str(item["reference"]) for item in entry.get("answers") or ())
    if len(names) < 2 or not references or not set(references) <= set(map(str, names)):
        return None
    most = max(references.values()) / references.total()
    if metric == "uar":
        return 1 / len(references)
    if metric == "macro_f1":
        return 2 * most / (1 + most) / len(references)
    return max(most, 1 / len(names))


def compare_with_chance(name: str, score: float, interval: Any, chance: float | None) -> str:
    """Return a set with its score where that is no better than chance, else an empty text."""
    low = interval[0] if interval else score
    if chance is None:
        return "" if score else f"{name} (0.000, no answer is right)"
    if low > chance:
        return ""
    below = ", below it" if interval and interval[1] < chance else ""
    return f"{name} ({score:.3f}; chance {chance:.3f}{below})"
