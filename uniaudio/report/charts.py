"""Line charts as plain numbers: the page draws them without any text inside the drawing, so they read at any width."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from uniaudio.report.run_folder import RunRecord
from uniaudio.run_records import is_number

WIDTH, HEIGHT = 1000, 400  # of the drawing's own coordinates
MOST_POINTS = 120  # of a line; more steps are averaged in as many parts
SMOOTHED = 0.7  # weight of the past in the running mean


@dataclass(frozen=True)
class Line:
    """Points (x, y) in order of x; ``series`` chooses colour and dashes, the same for a run in all charts."""

    name: str
    points: Sequence[tuple[float, float]]
    series: int


@dataclass(frozen=True)
class Chart:
    """Lines over steps on one pair of axes; ``noisy`` ones are drawn thin, with their running mean above them."""

    title: str
    unit: str
    lines: Sequence[Line]
    low: float
    high: float
    first: float
    last: float
    noisy: bool

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """Return the points as an SVG path in ``WIDTH`` by ``HEIGHT``, the highest value on top."""
        width, height = max(self.last - self.first, 1e-9), max(self.high - self.low, 1e-9)
        spots = [
            f"{(x - self.first) / width * WIDTH:.0f} {(self.high - y) / height * HEIGHT:.0f}"
            for x, y in points
        ]
        if len(spots) == 1:  # one point has no length: a dot is drawn by its round cap
            spots *= 2
        return "M" + "L".join(spots)

    def smooth_path(self, line: Line) -> str:
        """Return the path of the running mean of a line."""
        values = compute_running_mean([y for _, y in line.points])
        return self.path([(x, y) for (x, _), y in zip(line.points, values, strict=True)])

    def ticks(self) -> list[tuple[str, float]]:
        """Return round values within the range with their distance from the top, in percent."""
        step = round_step(self.high - self.low)
        first = math.ceil(self.low / step - 1e-9)
        values = [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]
        height = max(self.high - self.low, 1e-9)
        return [(f"{value:g}" if value else "0", (self.high - value) / height * 100) for value in values]

    def describe(self) -> str:
        """Tell the chart in words, for who does not see it."""
        ends = [
            f"{line.name} from {line.points[0][1]:.3g} to {line.points[-1][1]:.3g}" for line in self.lines
        ]
        return f"{self.title}, {self.unit} over steps {self.first:g} to {self.last:g}: {'; '.join(ends)}"


def round_step(span: float) -> float:
    """Return 1, 2 or 5 times a power of ten of which three to six fit into a span."""
    rough = max(span, 1e-9) / 3
    power = 10.0 ** math.floor(math.log10(rough))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= rough * (1 + 1e-9))


def compute_running_mean(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average, corrected for its start."""
    result, mean, weight = [], 0.0, 0.0
    for value in values:
        mean, weight = SMOOTHED * mean + (1 - SMOOTHED) * value, SMOOTHED * weight + (1 - SMOOTHED)
        result.append(mean / weight)
    return result


def reduce_points(
    points: Sequence[tuple[float, float]], most: int = MOST_POINTS
) -> list[tuple[float, float]]:
    """Average neighbouring points until at most so many are left."""
    if len(points) <= most:
        return list(points)
    cuts = [round(i * len(points) / most) for i in range(most + 1)]
    parts = [points[a:b] for a, b in pairwise(cuts)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def build_chart(
    title: str, unit: str, lines: Sequence[Line], steps: tuple[float, float], noisy: bool
) -> Chart | None:
    """Put lines on common axes, from 0 or the lowest value up; None when no line has a finite point.

    Args:
        steps: where the horizontal axis begins and ends, the same for all charts of a page.
    """
    kept = []
    for line in lines:
        finite = [(x, y) for x, y in line.points if math.isfinite(y)]
        if finite:
            kept.append(Line(line.name, reduce_points(finite), line.series))
    if not kept:
        return None
    ys = [y for line in kept for _, y in line.points]
    low, top = min(0.0, *ys), max(ys)
    high = top + 0.06 * (top - low) if top > low else low + 1.0  # of zeros alone, no millionths
    return Chart(title, unit, kept, low, high, *steps, noisy)


def find_step_range(runs: Sequence[RunRecord]) -> tuple[float, float]:
    """Return the steps that the charts of runs go from and to."""
    return 0.0, float(max((run.last_step for run in runs), default=0))


def find_stage_starts(runs: Sequence[RunRecord]) -> list[tuple[str, float]]:
    """Return the stages after the first and where on the axis they begin, in percent; none where runs differ in it."""
    _, last = find_step_range(runs)
    boundaries = []
    for run in runs:
        first: dict[str, int] = {}
        for event in run.events:
            if event["event"] == "stage":
                first.setdefault(event["stage"], event["step"])
        boundaries.append([(name, 100 * step / last) for name, step in first.items() if 0 < step < last])
    return boundaries[0] if boundaries and all(other == boundaries[0] for other in boundaries) else []


def build_loss_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Draw the loss per answer token over the steps: all tasks together first, then each task."""
    names = sorted({task for run in runs for row in run.rows for task in row.get("tasks", {})})
    steps = find_step_range(runs)
    charts = []
    for task in (None, *(names if len(names) > 1 else ())):
        lines = [Line(run.name, list_losses(run, task), series) for series, run in enumerate(runs)]
        title = "all tasks" if task is None else task
        charts.append(build_chart(title, "loss per answer token", lines, steps, True))
    return [drawn for drawn in charts if drawn is not None]


def list_losses(run: RunRecord, task: str | None) -> list[tuple[float, float]]:
    """Return the steps of a run with the loss of a task, or of all together."""
    losses = (row.get("loss") if task is None else row.get("tasks", {}).get(task) for row in run.rows)
    return [(row["step"], loss) for row, loss in zip(run.rows, losses, strict=True) if loss is not None]


def build_metric_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Draw the score of every evaluation set that was answered during training."""
    scores: dict[tuple[str, str], dict[int, list[tuple[float, float]]]] = {}
    for series, run in enumerate(runs):
        for event in run.events:
            if event["event"] == "evaluation":
                for name, result in event.get("results", {}).items():
                    if is_number(result.get("score")):
                        by_series = scores.setdefault((name, str(result.get("metric", "score"))), {})
                        by_series.setdefault(series, []).append((event["step"], result["score"]))
    charts = [
        build_chart(
            name,
            metric,
            [Line(runs[i].name, points, i) for i, points in by_series.items()],
            find_step_range(runs),
            False,
        )
        for (name, metric), by_series in scores.items()
    ]
    return [drawn for drawn in charts if drawn is not None]


@dataclass(frozen=True)
class Bar:
    """One bar: ``share`` is its length, of the whole width."""

    model: str
    value: float
    share: float
    series: int


def build_domain_bars(
    averages: Mapping[str, Mapping[str, float]], series: Mapping[str, int]
) -> dict[str, list[Bar]]:
    """Lay out one group of bars for each domain, one bar a model, in the colour of its series."""
    highest = max((abs(v) for means in averages.values() for v in means.values()), default=0.0)
    top = max(1.0, highest)
    return {
        domain: [Bar(model, v, max(v, 0.0) / top, series[model]) for model, v in means.items()]
        for domain, means in averages.items()
    }
