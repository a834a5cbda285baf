"""Comparisons between scores: rules by which a difference counts, every comparison, one sentence about a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.stats import binomtest

from uniaudio.console import format_difference
from uniaudio.data.template_file import Scoring
from uniaudio.evaluate.metrics.class_averages import CLASS_METRICS, measure_class_averages, number_answers
from uniaudio.evaluate.metrics.intervals import Summed, compute_interval
from uniaudio.evaluate.metrics.normalization import normalize_text
from uniaudio.evaluate.metrics.text_metrics import LOWER_IS_BETTER, error_rate
from uniaudio.evaluate.probing.suite_table import PROBES
from uniaudio.report.probe_scores import ScoreTable

NAMED = 2  # sets that the sentence names; of more it gives the number
EVALUATED = "answers"
Verdict = Literal["better", "worse", "unclear"]
ERRORS = 2.0  # standard errors of a difference: about 95 %
LEVEL = 0.05
RULES = {
    "spread": "probes: the difference is larger than 2 √(s₁² + s₂²), with s the spread over probe seeds "
    "(linear, MLP) or over 200 bootstrap samples of the test clips (kNN); without a spread, no "
    "difference is called significant",
    "pairs": "answers to the same questions: exact two-sided McNemar test on the questions that only one of "
    "the two answers correctly, p < 0.05",
    "bootstrap": "error rates, UAR and macro-F1 on the same questions: the 95 % interval of the difference over "
    "1,000 paired bootstrap samples of the questions excludes 0",
    "intervals": "scores on different questions: the difference is larger than √(h₁² + h₂²), with h half the 95 % "
    "interval of each",
}


@dataclass(frozen=True)
class Comparison:
    """A verdict, the rule of ``RULES`` behind it, and its numbers in words."""

    verdict: Verdict
    rule: str
    why: str


def get_verdict(gain: float, significant: bool) -> Verdict:
    """Name a difference; a positive gain is an improvement."""
    return "unclear" if not significant or gain == 0 else "better" if gain > 0 else "worse"


def compare_spreads(first: tuple[float, float], second: tuple[float, float]) -> Comparison:
    """Compare two means with their spreads: |m2 - m1| > 2 sqrt(s1^2 + s2^2).

    Two spreads of 0 come from a single seed, or from seeds of equal scores; they say nothing of chance, so the
    difference stays unclear.
    """
    gain = second[0] - first[0]
    margin = ERRORS * math.hypot(first[1], second[1])
    if margin == 0:
        return Comparison("unclear", "spread", "no spread: one seed, or equal scores")
    return Comparison(get_verdict(gain, abs(gain) > margin), "spread", f"margin {margin:.3f}")


def compare_pairs(first: Sequence[bool], second: Sequence[bool]) -> Comparison:
    """Compare right and wrong answers to the same questions (McNemar 1947, exact).

    Under the null a question that only one model answers right is as often won by either, so the smaller count b of
    b + c is binomial with p = 1/2, and the two-sided p value is 2 P(X <= min(b, c)), at most 1.
    """
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    won = sum(b and not a for a, b in zip(first, second, strict=True))
    p = binomtest(min(lost, won), lost + won, 0.5).pvalue if lost + won else 1.0
    why = f"{won} won, {lost} lost of {len(first)}, p = {p:.2g}"
    return Comparison(get_verdict(won - lost, p < LEVEL), "pairs", why)


def compare_bootstrap(first: Summed, second: Summed, lower_is_better: bool = True) -> Comparison:
    """Compare two scores on the same questions by drawing the questions anew, both models together."""
    low, high = compute_interval(first.clips, lambda counts: second.resample(counts) - first.resample(counts))
    gain = second.score() - first.score()
    gain = -gain if lower_is_better else gain
    why = f"95 %: {format_difference(low, 3)} to {format_difference(high, 3)}"
    return Comparison(get_verdict(gain, not low <= 0 <= high), "bootstrap", why)


def compare_intervals(gain: float, first: tuple[float, float], second: tuple[float, float]) -> Comparison:
    """Compare two scores on different questions by half the widths of their 95 % intervals."""
    margin = math.hypot(first[1] - first[0], second[1] - second[0]) / 2
    return Comparison(get_verdict(gain, abs(gain) > margin), "intervals", f"margin {margin:.3f}")


def compare_answers(
    first: Mapping[str, Any], second: Mapping[str, Any], scoring: Scoring = Scoring()
) -> Comparison:
    """Compare the results of two models on an evaluation set by the strictest rule that its files allow.

    Args:
        first: an entry of ``answers.json``; second: that of the other model. scoring: of the set's template.
    """
    metric = str(second["metric"])
    one, two = ({item["id"]: item for item in entry.get("answers", ())} for entry in (first, second))
    if one and one.keys() == two.keys() and all(one[i]["reference"] == two[i]["reference"] for i in one):
        two = {name: two[name] for name in one}  # in the same order
        if metric in LOWER_IS_BETTER or metric in CLASS_METRICS:
            before, after = (sum_answers(list(side.values()), metric, scoring) for side in (one, two))
            return compare_bootstrap(before, after, lower_is_better=metric in LOWER_IS_BETTER)
        if metric == "accuracy":
            return compare_pairs(*([bool(item["right"]) for item in side.values()] for side in (one, two)))
    gain = float(second["score"]) - float(first["score"])
    gain = -gain if metric in LOWER_IS_BETTER else gain
    intervals = [get_score_interval(entry) for entry in (first, second)]
    if intervals[0] is None or intervals[1] is None:
        return Comparison("unclear", "intervals", "no interval is known")
    return compare_intervals(gain, intervals[0], intervals[1])


def sum_answers(items: Sequence[Mapping[str, Any]], metric: str, scoring: Scoring) -> Summed:
    """Return the error rate, UAR or macro-F1 of stored answers as sums over questions."""
    answers, references = (
        [normalize_text(str(item[key]), scoring.normalize) for item in items]
        for key in ("answer", "reference")
    )
    if metric in CLASS_METRICS:
        right = [bool(item["right"]) for item in items]
        return measure_class_averages(*number_answers(answers, right, references))[metric]
    return error_rate(answers, [[reference] for reference in references], metric, scoring.tokenize)


def get_score_interval(entry: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the 95 % interval of an entry's score: as stored, or for a share of right answers Wilson's (1927)."""
    stored = entry.get("interval")
    if isinstance(stored, Sequence) and len(stored) == 2:
        return float(stored[0]), float(stored[1])
    if entry["metric"] != "accuracy" or not entry.get("examples"):
        return None
    low, high = binomtest(round(float(entry["score"]) * entry["examples"]), entry["examples"]).proportion_ci(
        1 - LEVEL, method="wilson"
    )
    return float(low), float(high)


@dataclass(frozen=True)
class ScoreChange:
    """One score of one set before and after; ``what`` is measured by which probe or metric."""

    task: str
    what: str
    before: float
    after: float
    comparison: Comparison

    @property
    def delta(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class TaskChange:
    """All comparisons of one set: better where one is and none is worse, worse likewise, else mixed or unclear."""

    task: str
    changes: tuple[ScoreChange, ...]

    @property
    def verdict(self) -> str:
        verdicts = {change.comparison.verdict for change in self.changes} - {"unclear"}
        return "mixed" if len(verdicts) > 1 else verdicts.pop() if verdicts else "unclear"


@dataclass(frozen=True)
class Summary:
    """What is said first about one run.

    Args:
        sentence: plain words. tasks: by verdict. rules: those that were used. comparisons: how many were made, of
            which one in twenty would pass by chance. also: the same sentence against other baselines.
    """

    run: str
    against: str
    sentence: str
    tasks: Mapping[str, Sequence[TaskChange]]
    rules: Sequence[str]
    comparisons: int
    also: Sequence[str] = ()


def compare_probes(table: ScoreTable, start: str, trained: str) -> list[ScoreChange]:
    """Compare every probe of a run's own model with that of an untrained one."""
    changes = []
    for task in table.tasks:
        for probe in table.probes:
            first, second = table.get(task, start, probe), table.get(task, trained, probe)
            if first is not None and second is not None:
                comparison = compare_spreads((first.mean, first.std), (second.mean, second.std))
                name = f"{PROBES.get(probe, probe)} probe"
                changes.append(ScoreChange(task, name, first.mean, second.mean, comparison))
    return changes


def compare_answer_sets(
    first: Mapping[str, Mapping[str, Any]],
    second: Mapping[str, Mapping[str, Any]],
    scorings: Mapping[str, Scoring],
) -> list[ScoreChange]:
    """Compare the answers of a run with those of another model on every evaluation set that both answered.

    Args:
        scorings: how the template of each set compares answers, where its recipe could be read.
    """
    changes = []
    for name, entry in second.items():
        if name in first and first[name].get("metric") == entry["metric"]:
            comparison = compare_answers(first[name], entry, scorings.get(name, Scoring()))
            before, after = float(first[name]["score"]), float(entry["score"])
            changes.append(ScoreChange(name, f"{EVALUATED}, {entry['metric']}", before, after, comparison))
    return changes


def summarize_changes(run: str, against: str, changes: Sequence[ScoreChange]) -> Summary:
    """Sort the comparisons of a run by what they say, and say it in one sentence."""
    by_task: dict[str, list[ScoreChange]] = {}
    for change in changes:
        by_task.setdefault(change.task, []).append(change)
    task_changes = [TaskChange(task, tuple(members)) for task, members in by_task.items()]
    tasks = {
        kind: [t for t in task_changes if t.verdict == kind]
        for kind in ("better", "worse", "mixed", "unclear")
    }
    for kind in ("better", "worse"):
        tasks[kind].sort(key=lambda t: -max(abs(change.delta) for change in t.changes))
    rules = [RULES[rule] for rule in dict.fromkeys(change.comparison.rule for change in changes)]
    return Summary(
        run, against, write_sentence(run, against, tasks, len(task_changes)), tasks, rules, len(changes)
    )


def write_sentence(run: str, against: str, tasks: Mapping[str, Sequence[TaskChange]], count: int) -> str:
    """Say what improved, what was lost and what is unclear, with the largest change of each kind."""
    sets = "one set" if count == 1 else f"{count} sets"
    better, worse = tasks["better"], tasks["worse"]
    if not better and not worse and not tasks["mixed"]:
        return f"Compared with {against}, {run} changed nothing beyond chance on {sets}."
    gained = f"improved on {name_tasks(better)}" if better else "improved on none"
    lost = f"lost on {name_tasks(worse)}" if worse else "lost on none"
    parts = [f"Of {sets} compared with {against}, {run} {gained} and {lost}"]
    if tasks["mixed"]:
        parts.append(f"measures disagree on {name_tasks(tasks['mixed'])}")
    if tasks["unclear"]:
        parts.append(f"{len(tasks['unclear'])} changed within chance")
    return "; ".join(parts) + "."


def name_tasks(tasks: Sequence[TaskChange]) -> str:
    """Name a few sets with the largest change of each; of many, how many they are and the one with the largest."""
    if len(tasks) <= NAMED:
        return " and ".join(f"{task.task} ({describe_largest(task)})" for task in tasks)
    return f"{len(tasks)} (most on {tasks[0].task}, {describe_largest(tasks[0])})"


def describe_largest(task: TaskChange) -> str:
    """Tell the largest change of a set that counts."""
    change = max(task.changes, key=lambda one: (one.comparison.verdict != "unclear", abs(one.delta)))
    return f"{change.what} {format_difference(change.delta, 3)}"


def summarize_loss(run: str, rows: Sequence[Mapping[str, Any]], has_matrix: bool = False) -> str:
    """Say what can be said of a run whose scores nobody compared with those of its start.

    The losses of several stages are those of different data, so they are not compared.

    Args:
        has_matrix: its scores after every stage are on the page.
    """
    stage = rows[-1].get("stage") if rows else None
    last = [row for row in rows if row.get("stage") == stage]
    losses = [row["loss"] for row in last if row.get("loss") is not None]
    where = f" in its last stage, {stage}," if len(last) < len(rows) else ""
    steps = (
        f"steps {last[0]['step']} to {rows[-1]['step']}"
        if where
        else f"{rows[-1]['step'] if rows else 0} steps"
    )
    fell = (
        f"The loss of {run}{where} went from {losses[0]:.3f} to {losses[-1]:.3f} over {steps}"
        if losses
        else f"{run} has no logged loss yet"
    )
    if has_matrix:
        return f"{fell}; its scores after every stage are in the section Forgetting."
    return (
        f"{fell}, but no result compares it with its start, so it is unknown what it learned or "
        "forgot; run uniaudio probe and uniaudio eval to find out."
    )


def get_sign(verdict: Verdict | str) -> str:
    """Return the sign that stands for a verdict beside its colour."""
    return {"better": "▲", "worse": "▼", "mixed": "◆"}.get(verdict, "≈")
