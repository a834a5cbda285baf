"""Lines, ticks and bars by hand."""

import json
import math

import pytest
from helpers.runs import write_rows, write_run
from hypothesis import given
from hypothesis import strategies as st

from uniaudio.report.charts import (
    HEIGHT,
    WIDTH,
    Line,
    build_chart,
    build_domain_bars,
    build_loss_charts,
    build_metric_charts,
    compute_running_mean,
    find_stage_starts,
    reduce_points,
    round_step,
)
from uniaudio.report.run_folder import read_run


def test_a_path_goes_from_corner_to_corner():
    drawn = build_chart("t", "loss", [Line("run", [(0, 0.0), (5, 1.0), (10, 2.0)], 0)], (0.0, 10.0), True)
    top = round((2 * 0.06) / (2 * 1.06) * HEIGHT)  # six hundredths of room above the highest value
    middle = round((2 * 1.06 - 1) / (2 * 1.06) * HEIGHT)
    assert drawn.path(drawn.lines[0].points) == f"M0 {HEIGHT}L{WIDTH // 2} {middle}L{WIDTH} {top}"


def test_values_below_zero_are_on_the_chart():
    drawn = build_chart("t", "u", [Line("run", [(0, -2.0), (1, 2.0)], 0)], (0.0, 1.0), False)
    assert drawn.low == -2
    assert all(0 <= top <= 100 for _, top in drawn.ticks())


def test_one_point_is_a_dot_and_no_finite_point_is_no_chart():
    drawn = build_chart("t", "u", [Line("run", [(3, 1.0)], 0)], (0.0, 3.0), True)
    assert drawn.path(drawn.lines[0].points).count(str(WIDTH)) == 2
    assert build_chart("t", "u", [Line("run", [(3, math.nan), (4, math.inf)], 0)], (0.0, 4.0), True) is None
    assert build_chart("t", "u", [], (0.0, 4.0), True) is None


def test_zeros_alone_have_an_axis_up_to_one():
    drawn = build_chart("t", "accuracy", [Line("run", [(0, 0.0), (5, 0.0)], 0)], (0.0, 5.0), False)
    assert drawn is not None
    assert (drawn.low, drawn.high) == (0.0, 1.0)


@given(st.floats(1e-6, 1e6))
def test_three_to_eight_round_ticks(span):
    step = round_step(span)
    assert 3 - 1e-6 < span / step < 7.6
    digit = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(digit - round_one) for round_one in (1, 2, 5)) < 1e-6


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=60))
def test_the_running_mean_equals_its_sum(values):
    for i, mean in enumerate(compute_running_mean(values)):
        weights = [0.3 * 0.7 ** (i - j) for j in range(i + 1)]
        expected = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert mean == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=500), st.integers(1, 60))
def test_thinning_keeps_the_mean(values, most):
    points = [(float(i), v) for i, v in enumerate(values)]
    reduced = reduce_points(points, most)
    assert len(reduced) == min(len(points), most)
    assert [x for x, _ in reduced] == sorted(x for x, _ in reduced)
    if len(points) % most == 0 or len(points) <= most:  # parts of one size
        assert sum(y for _, y in reduced) / len(reduced) == pytest.approx(sum(values) / len(values), abs=1e-9)


def test_charts_of_two_runs_share_axes_and_tasks(tmp_path):
    first = read_run(write_run(tmp_path / "a", ["x", "y"], steps=40), "a")
    second = read_run(write_run(tmp_path / "b", ["y"], steps=80), "b")
    charts = build_loss_charts([first, second])
    assert [(c.title, [(line.name, line.series) for line in c.lines]) for c in charts] == [
        ("all tasks", [("a", 0), ("b", 1)]),
        ("x", [("a", 0)]),
        ("y", [("a", 0), ("b", 1)]),
    ]
    assert {(c.first, c.last) for c in charts} == {(0.0, 80.0)}
    assert "loss per answer token over steps 0 to 80: a from" in charts[0].describe()
    metrics = build_metric_charts([first, second])
    assert [c.title for c in metrics] == ["x:asked", "y:asked"]
    assert [x for x, _ in metrics[0].lines[0].points] == [20, 40]
    assert [x for x, _ in metrics[1].lines[1].points] == [20, 40, 60, 80]


def test_a_run_of_one_task_has_one_loss_chart_and_a_run_without_rows_none(tmp_path):
    run = read_run(write_run(tmp_path / "a", ["only"], steps=40), "a")
    assert [c.title for c in build_loss_charts([run])] == ["all tasks"]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.jsonl").write_text("")
    assert build_loss_charts([read_run(tmp_path / "b", "b")]) == []


def test_bars_are_shares_of_one_or_of_the_highest():
    bars = build_domain_bars(
        {"speech": {"m": 0.5, "n": 1.0}, "music": {"m": -0.1, "n": 0.2}}, {"m": 0, "n": 3}
    )
    assert [(b.share, b.series) for b in bars["speech"]] == [(0.5, 0), (1.0, 3)]
    assert [b.share for b in bars["music"]] == [0.0, 0.2]
    assert build_domain_bars({"all": {"m": 4.0}}, {"m": 0})["all"][0].share == 1.0


def test_stages_are_marked_where_they_begin_if_all_runs_agree(tmp_path):
    def run(name, second):
        folder = write_run(tmp_path / name, ["a"], steps=40, every=2)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        resumed = [{"event": "stage", "step": step, "stage": "two"} for step in (second, second + 5)]
        write_rows(folder / "metrics.jsonl", [*rows, *resumed])
        return read_run(folder, name)

    assert find_stage_starts([run("a", 10), run("b", 10)]) == [("two", 25.0)]
    assert find_stage_starts([run("c", 10), run("d", 20)]) == []
