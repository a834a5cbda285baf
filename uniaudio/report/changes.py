"""What moved: every comparison with its rule, and one plain sentence about a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from uniaudio.data.template import Scoring
from uniaudio.report.scores import PROBES, ScoreTable
from uniaudio.report.significance import RULES, Comparison, Verdict, compare_answers, compare_spreads

NAMED = 2  # sets that the sentence names; of more it gives the number
EVALUATED = "answers"


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
        return f"Against {against}, {run} moved nothing beyond chance on {sets} compared."
    gained = f"improved on {name_tasks(better)}" if better else "improved on none"
    lost = f"lost on {name_tasks(worse)}" if worse else "lost on none"
    parts = [f"Of {sets} compared with {against}, {run} {gained} and {lost}"]
    if tasks["mixed"]:
        parts.append(f"measures disagree on {name_tasks(tasks['mixed'])}")
    if tasks["unclear"]:
        parts.append(f"{len(tasks['unclear'])} moved within chance")
    return "; ".join(parts) + "."


def name_tasks(tasks: Sequence[TaskChange]) -> str:
    """Name a few sets with the largest change of each; of many, how many they are and the one with the largest."""
    if len(tasks) <= NAMED:
        return " and ".join(f"{task.task} ({describe_largest(task)})" for task in tasks)
    return f"{len(tasks)} (most on {tasks[0].task}, {describe_largest(tasks[0])})"


def describe_largest(task: TaskChange) -> str:
    """Tell the largest change of a set that counts."""
    change = max(task.changes, key=lambda one: (one.comparison.verdict != "unclear", abs(one.delta)))
    return f"{change.what} {change.delta:+.3f}"


def summarize_loss(run: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Say what can be said of a run that nobody compared with anything."""
    losses = [row["loss"] for row in rows if row.get("loss") is not None]
    fell = (
        f"The loss of {run} went from {losses[0]:.3f} to {losses[-1]:.3f} over {rows[-1]['step']} steps"
        if losses
        else f"{run} has no loss yet"
    )
    return (
        f"{fell}, but nothing compares it with its start, so what it learned or forgot is not known; "
        "run uniaudio probe and uniaudio eval to measure it."
    )


def get_sign(verdict: Verdict | str) -> str:
    """Return the sign that stands for a verdict beside its colour."""
    return {"better": "▲", "worse": "▼", "mixed": "◆"}.get(verdict, "≈")
