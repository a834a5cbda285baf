"""What benchmarks find: figures with a unit and a direction, one file per kind of machine and day, and what moved.

A result is ``{benchmark, title, machine, quick, quiet, headline, cases: {case: {side: {figure: {value, runs}}}}}``. The
first side of a case is what the others are compared with. ``value`` is the best of ``runs`` (the worst of waits and
loads). A stored file is ``{kind, day, benchmarks: {name: result}}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Result = dict[str, Any]
Sides = Mapping[str, Mapping[str, Mapping[str, Any]]]  # side -> figure -> {value, runs}

LEAST = 0.05  # a figure that differs by less has not moved
AGREEMENT = 1e-3  # of sides that compute the same


@dataclass(frozen=True)
class Figure:
    """How to read a figure.

    Args:
        better: 1 where more is better, -1 where less is, 0 for a fact that nobody judges.
        worst: the value is the worst of the runs, not the best: what counts in a wait is the longest one.
    """

    unit: str
    better: int
    worst: bool = False


SECONDS, GIB, FACT = Figure("s", -1), Figure("GiB", -1), Figure("", 0)
FIGURES: Mapping[str, Figure] = {
    "seconds": SECONDS,  # of one step, forward and backward
    "encoder_seconds": SECONDS,
    "mel_seconds": SECONDS,
    "wall_seconds": SECONDS,  # of a whole process, start-up included
    "seconds_per_clip": SECONDS,  # after start-up
    "open_seconds": SECONDS,
    "resume_seconds": SECONDS,
    "longest_wait_seconds": Figure("s", -1, worst=True),
    "data_wait_share": Figure("", -1),
    "peak_gib": GIB,
    "checkpoint_mib": Figure("MiB", -1),
    "first_mib": Figure("MiB", -1),
    "last_mib": Figure("MiB", -1),
    "per_second": Figure("1/s", 1),
    "audio_seconds_per_second": Figure("x real time", 1),
    "processor_seconds": SECONDS,  # of all threads
    **dict.fromkeys(("knn", "linear", "cosine"), Figure("", 1)),
    **dict.fromkeys(("wer", "cer", "wer_with_silence", "cer_with_silence"), Figure("", -1)),
    "times_faster": Figure("x", 1),
    "times_faster_with_mel": Figure("x", 1),
    "times_faster_whole": Figure("x", 1),
    "times_less_memory": Figure("x", 1),
    "load": Figure("", 0, worst=True),  # one-minute load average before a run
    **dict.fromkeys(("loss", "score", "audio_seconds", "clips", "rows", "steps", "trained", "tokens"), FACT),
}


def figure_of(name: str) -> Figure:
    """Return how to read a figure.

    Raises:
        KeyError: for a name that has no entry in ``FIGURES``.
    """
    if name not in FIGURES:
        raise KeyError(f"{name} has no unit and direction yet; add it to FIGURES in benchmarks/results.py")
    return FIGURES[name]


def gathered(runs: Mapping[str, Sequence[Mapping[str, float]]], ratios: Mapping[str, str]) -> Result:
    """Return the figures of one case from the runs of its sides, which took turns.

    Args:
        runs: side -> the figures of every run. ratios: name -> figure; how many times better a side is than the first
            one, by the values, and in ``runs`` round by round.
    """
    sides: Result = {
        side: {name: summed_up(name, [row[name] for row in rows]) for name in rows[0]}
        for side, rows in runs.items()
    }
    first, *others = sides.values()
    for name, figure in ratios.items():
        for other in others:
            if figure in first and figure in other:
                both = first[figure], other[figure]
                rounds = zip(*(one["runs"] for one in both), strict=True)
                other[name] = {
                    "value": times_better(figure, *(one["value"] for one in both)),
                    "runs": [times_better(figure, before, after) for before, after in rounds],
                }
    return sides


def summed_up(name: str, runs: list[float]) -> dict[str, Any]:
    """Return the value that stands for all runs, and the runs."""
    figure = figure_of(name)
    upward = (figure.better > 0) is not figure.worst
    return {"value": (max if upward else min)(runs), "runs": runs}


def times_better(figure: str, first: float, other: float) -> float:
    """Return how many times better ``other`` is than ``first``; above 1 is better."""
    return other / first if figure_of(figure).better > 0 else first / other


def disagreement(sides: Sides, names: Sequence[str], figure: str = "loss") -> float:
    """Return how far sides that compute the same are apart in a figure, relative to its size (at least 1), or NaN."""
    values = [sides[name][figure]["value"] for name in names]
    return float(np.ptp(values)) / max(1.0, abs(values[0]))


def machine_kind(machine: Mapping[str, Any]) -> str:
    """Name processor, cores and torch release, in letters that a file name may have."""
    release = ".".join(str(machine["torch"]).split("+")[0].split(".")[:2])
    text = f"{machine['processor']} {machine['cores']} cores torch {release}"
    return re.sub(r"[^a-z0-9.]+", "_", text.lower()).strip("_")


@dataclass(frozen=True)
class Move:
    """A figure that is not what it was: the ranges of old and new runs do not touch, and the values differ."""

    benchmark: str
    case: str
    side: str
    figure: str
    old: float
    new: float
    loads: tuple[float, float]

    @property
    def change(self) -> float:
        """Relative to the old value."""
        return self.new / self.old - 1

    @property
    def better(self) -> bool:
        return (self.new > self.old) == (figure_of(self.figure).better > 0)


def moved(old: Result, new: Result) -> list[Move]:
    """Compare two results of one benchmark: every judged figure that both have."""
    moves = []
    for case, side, name, now in every_figure(new):
        before = old["cases"].get(case, {}).get(side, {}).get(name)
        if before is None or not figure_of(name).better or not before["value"]:
            continue
        ranges = [(min(v), max(v)) for v in ([*f["runs"], f["value"]] for f in (before, now))]
        apart = ranges[0][1] < ranges[1][0] or ranges[1][1] < ranges[0][0]
        if apart and abs(now["value"] / before["value"] - 1) > LEAST:
            loads = tuple(load_of(r["cases"][case][side]) for r in (old, new))
            moves.append(Move(new["benchmark"], case, side, name, before["value"], now["value"], loads))  # type: ignore[arg-type]
    return moves


def every_figure(result: Result) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Yield case, side, name and figure."""
    for case, sides in result["cases"].items():
        for side, figures in sides.items():
            for name, figure in figures.items():
                yield case, side, name, figure


def load_of(figures: Mapping[str, Mapping[str, Any]]) -> float:
    """Return the highest load before a run of a side; NaN where nobody noted it."""
    return float(figures.get("load", {}).get("value", float("nan")))


def comparable(one: Result, other: Result) -> bool:
    """Whether two results are of one benchmark, kind of machine, number of threads and size."""
    alike = machine_kind(one["machine"]) == machine_kind(other["machine"])
    threads = one["machine"]["threads"] == other["machine"]["threads"]
    return (
        alike
        and threads
        and all(one.get(key) == other.get(key) for key in ("benchmark", "quick", "settings"))
    )


def history(store: Path, result: Result) -> list[Result]:
    """Return the stored results that a result can be compared with, oldest first."""
    same_name = [
        stored["benchmarks"][result["benchmark"]]
        for stored in (json.loads(file.read_text()) for file in sorted(store.glob("*.json")))
        if result["benchmark"] in stored["benchmarks"]
    ]
    fitting = [other for other in same_name if comparable(result, other)]
    return sorted(fitting, key=lambda other: other["machine"]["when"])


def store_result(store: Path, result: Result) -> Path:
    """Put a result into the file of its machine and day, in the place of one of the same benchmark."""
    kind, day = machine_kind(result["machine"]), result["machine"]["when"][:10]
    store.mkdir(parents=True, exist_ok=True)
    file = store / f"{kind}_{day}{'_quick' if result['quick'] else ''}.json"
    stored = json.loads(file.read_text()) if file.is_file() else {"kind": kind, "day": day, "benchmarks": {}}
    stored["benchmarks"][result["benchmark"]] = result
    file.write_text(json.dumps(stored, indent=1) + "\n")
    return file
