"""Figures are summed up by their direction, stored by machine and day, and compared with the right ones only."""

import io
import json
import math

import pytest
from results import (
    FIGURES,
    disagreement,
    figure_of,
    gathered,
    history,
    machine_kind,
    moved,
    store_result,
)
from tables import draw, has_curve, moved_table, one_table, summary

MACHINE = {
    "processor": "AMD EPYC",
    "cores": 2,
    "threads": 2,
    "torch": "2.13.0+cpu",
    "when": "2026-11-20T10:00:00",
    "commit": "abc",
}


def result(stock, ours, **machine):
    """A made-up result of one case: seconds and memory of each run of two sides."""
    runs = {
        side: [{"seconds": s, "peak_gib": 2.0, "loss": 1.0, "load": 0.5} for s in seconds]
        for side, seconds in (("stock", stock), ("ours", ours))
    }
    ratios = {"times_faster": "seconds", "times_less_memory": "peak_gib"}
    return {
        "benchmark": "step",
        "title": "A step",
        "machine": {**MACHINE, **machine},
        "quick": False,
        "settings": {"steps": 2},
        "headline": "seconds",
        "cases": {"mix": gathered(runs, ratios)},
    }


def names(moves):
    return {(move.side, move.figure) for move in moves}


def test_the_best_run_counts_in_the_direction_of_the_figure():
    rows = [
        {"seconds": 3.0, "per_second": 5.0, "longest_wait_seconds": 0.1, "load": 0.2},
        {"seconds": 2.0, "per_second": 9.0, "longest_wait_seconds": 4.0, "load": 0.9},
        {"seconds": 4.0, "per_second": 7.0, "longest_wait_seconds": 0.3, "load": 0.4},
    ]
    figures = gathered({"ours": rows}, {})["ours"]
    assert {name: figure["value"] for name, figure in figures.items()} == {
        "seconds": 2.0,  # the least
        "per_second": 9.0,  # the most
        "longest_wait_seconds": 4.0,  # the worst
        "load": 0.9,
    }
    assert figures["per_second"]["runs"] == [5.0, 9.0, 7.0]


def test_ratios_are_of_the_values_and_round_by_round():
    sides = result([8.0, 6.0, 9.0], [2.0, 3.0, 1.0])["cases"]["mix"]
    assert sides["ours"]["times_faster"] == {"value": 6.0, "runs": [4.0, 2.0, 9.0]}
    assert sides["ours"]["times_less_memory"]["value"] == 1.0
    assert "times_faster" not in sides["stock"]
    rates = {"usual": [{"per_second": 10.0}], "ours": [{"per_second": 40.0}]}
    assert gathered(rates, {"times_faster": "per_second"})["ours"]["times_faster"]["value"] == 4.0


def test_a_figure_without_a_direction_is_refused():
    with pytest.raises(KeyError, match="apples"):
        figure_of("apples")
    assert all(figure.better in (-1, 0, 1) for figure in FIGURES.values())


def test_disagreement_is_relative_to_the_size():
    sides = {"a": {"loss": {"value": 400.0}}, "b": {"loss": {"value": 402.0}}, "c": {"loss": {"value": 0.0}}}
    assert disagreement(sides, ("a", "b")) == pytest.approx(0.005)
    assert disagreement({"a": sides["c"], "b": {"loss": {"value": 0.5}}}, ("a", "b")) == 0.5
    assert math.isnan(disagreement({"a": sides["c"], "b": {"loss": {"value": math.nan}}}, ("a", "b")))


def test_moved_is_what_left_the_spread_of_the_runs():
    old = result([8.0, 8.2, 8.4], [2.0, 2.2, 2.4])
    assert moved(old, old) == []
    faster = result([8.1, 8.3, 8.0], [1.0, 1.1, 1.2])
    moves = moved(old, faster)
    assert names(moves) == {("ours", "seconds"), ("ours", "times_faster")}
    assert all(move.better for move in moves)
    (seconds,) = [move for move in moves if move.figure == "seconds"]
    assert (seconds.old, seconds.new, seconds.loads) == (2.0, 1.0, (0.5, 0.5))
    assert seconds.change == -0.5
    back = moved(faster, old)
    assert names(back) == names(moves)
    assert not any(move.better for move in back)


def test_overlapping_runs_and_small_differences_have_not_moved():
    old = result([8.0] * 3, [2.0, 2.0, 3.0])
    assert moved(old, result([8.0] * 3, [2.9, 3.5, 4.0])) == []  # 2 to 3 s and 2.9 to 4 s touch
    old = result([8.0] * 3, [2.00, 2.01, 2.02])
    assert moved(old, result([8.0] * 3, [2.05, 2.06, 2.07])) == []  # apart, but by less than 5 %


def test_facts_new_cases_and_new_sides_are_not_judged():
    old, new = result([8.0] * 3, [2.0] * 3), result([8.0] * 3, [2.0] * 3)
    new["cases"]["mix"]["ours"]["loss"] = {"value": 9.0, "runs": [9.0]}
    new["cases"]["mix"]["peer"] = {"seconds": {"value": 1.0, "runs": [1.0]}}
    new["cases"]["30"] = new["cases"]["mix"]
    assert moved(old, new) == []


def test_machine_kind_holds_processor_cores_and_torch_release():
    assert machine_kind(MACHINE) == "amd_epyc_2_cores_torch_2.13"
    assert machine_kind({**MACHINE, "torch": "2.13.4"}) == machine_kind(MACHINE)
    assert machine_kind({**MACHINE, "torch": "2.11.0"}) != machine_kind(MACHINE)


def test_only_the_same_machine_threads_and_size_are_compared(tmp_path):
    same = [result([8.0], [2.0], when=f"2026-11-{day}T10:00:00") for day in (18, 20, 19)]
    others = [
        result([8.0], [2.0], when="2026-11-21T10:00:00", **change)
        for change in ({"processor": "Other"}, {"cores": 64}, {"torch": "2.11.0"}, {"threads": 1})
    ]
    others[3]["machine"]["when"] = "2026-11-22T10:00:00"  # its file is that of the same machine
    quick = {**result([8.0], [2.0]), "quick": True}
    steps = {**result([8.0], [2.0], when="2026-11-23T10:00:00"), "settings": {"steps": 30}}
    other_benchmark = {**result([8.0], [2.0], when="2026-11-24T10:00:00"), "benchmark": "encoder"}
    for one in (*same, *others, quick, steps, other_benchmark):
        store_result(tmp_path, one)
    actual = history(tmp_path, result([8.0], [1.0], when="2026-11-30T10:00:00"))
    assert [one["machine"]["when"][8:10] for one in actual] == ["18", "19", "20"]


def test_a_day_has_one_file_and_keeps_the_newest_of_each_benchmark(tmp_path):
    first = store_result(tmp_path, result([8.0], [2.0]))
    second = store_result(tmp_path, result([8.0], [1.0], when="2026-11-20T12:00:00"))
    store_result(tmp_path, {**result([3.0], [1.0]), "benchmark": "encoder"})
    assert first == second == tmp_path / "amd_epyc_2_cores_torch_2.13_2026-11-20.json"
    stored = json.loads(first.read_text())
    assert set(stored["benchmarks"]) == {"step", "encoder"}
    assert stored["benchmarks"]["step"]["cases"]["mix"]["ours"]["seconds"]["value"] == 1.0


def test_tables_and_curve_show_every_side(tmp_path):
    from rich.console import Console

    old, new = result([8.0] * 2, [2.0] * 2), result([8.0] * 2, [1.0] * 2)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(one_table(new), summary([new]), moved_table(moved(old, new), {"step": "yesterday"}))
    text = console.export_text()
    assert "8.00x" in text
    assert "-50%" in text
    assert "yesterday" in text
    assert not has_curve(new)
    new["cases"] |= {"1": new["cases"]["mix"], "30": new["cases"]["mix"], "30 at 25 Hz": new["cases"]["mix"]}
    assert has_curve(new)
    draw(new, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_a_side_without_a_load_is_reported_as_such():
    new = result([8.0], [2.0])
    del new["cases"]["mix"]["ours"]["load"]
    (move, _) = moved(new, {**new, "cases": result([8.0], [1.0])["cases"]})
    assert math.isnan(move.loads[0])
