"""What is said first about the answers of a run: the scores, and the sets on which they are no better than chance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from uniaudio.evaluate.metrics.text_metrics import LOWER_IS_BETTER
from uniaudio.report.significance import get_score_interval

NAMED = 3  # sets that a sentence names; of more it gives the range


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
        labels = entry.get("labels") or {}
        if metric in LOWER_IS_BETTER and score >= 1:
            errors.append(f"{name} ({metric} {score:.3f})")
        if metric == "accuracy" and (chance or not score):
            answered += [compare_with_chance(name, score, get_score_interval(entry), chance)]
        if labels.get("accuracy") is not None and chance:
            labelled += [compare_with_chance(name, labels["accuracy"], labels.get("interval"), chance)]
    kinds = {
        f"Answers of {run} are no better than chance on": answered,
        f"The likeliest labels of {run} are no better than chance on": labelled,
        f"Answers of {run} have as many errors as the right answers have words or characters on": errors,
    }
    return [f"{beginning} {', '.join(filter(None, sets))}." for beginning, sets in kinds.items() if any(sets)]


def compute_chance(entry: Mapping[str, Any]) -> float | None:
    """Return the accuracy of always giving the most frequent right answer of a closed set; None where a question has
    several right labels, or the set is open.
    """
    names = (entry.get("labels") or {}).get("names") or ()
    references = Counter(str(item["reference"]) for item in entry.get("answers") or ())
    if len(names) < 2 or not references or not set(references) <= set(map(str, names)):
        return None
    return max(max(references.values()) / references.total(), 1 / len(names))


def compare_with_chance(name: str, score: float, interval: Any, chance: float | None) -> str:
    """Return a set with its score where that is no better than chance, else an empty text."""
    low = interval[0] if interval else score
    if chance is None:
        return "" if score else f"{name} (0.000, no answer is right)"
    if low > chance:
        return ""
    below = ", below it" if interval and interval[1] < chance else ""
    return f"{name} ({score:.3f}; chance {chance:.3f}{below})"
