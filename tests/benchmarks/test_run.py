"""All benchmarks in one call: collected, stored, drawn and compared, over scripts that only claim to measure."""

import json
import sys

import pytest
import run
from measure import machine

SCRIPT = """
import json, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
result = json.loads(open({template!r}).read())
result["benchmark"] = {name!r}
open(sys.argv[sys.argv.index("--out") + 1], "w").write(json.dumps(result))
sys.exit({code})
"""


def made_up(seconds: list[float], when: str) -> dict:
    figure = {"value": min(seconds), "runs": seconds}
    ratio = {"value": 8 / min(seconds), "runs": [8 / s for s in seconds]}
    sides = {
        "stock": {"seconds": {"value": 8.0, "runs": [8.0] * 3}},
        "ours": {"seconds": figure, "times_faster": ratio, "times_less_memory": ratio},
    }
    return {
        "title": "Made up",
        "machine": {**machine(2), "when": when},
        "quick": False,
        "settings": {"steps": 2},
        "headline": "seconds",
        "cases": {"1": sides, "30": sides, "mix": sides},
    }


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Two scripts that work and one that fails in the place of the benchmarks; returns what they find."""
    monkeypatch.setattr(run, "HERE", tmp_path)
    names = {"step": 0, "encoder": 0, "labels": 1}
    monkeypatch.setattr(run, "BENCHMARKS", {name: f"{name}.py" for name in names})
    result = tmp_path / "found.json"
    for name, code in names.items():
        (tmp_path / f"{name}.py").write_text(SCRIPT.format(template=str(result), name=name, code=code))
    return result


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    run.main()


def test_results_are_stored_drawn_and_compared(scripts, tmp_path, monkeypatch, capsys):
    store, figures = tmp_path / "results", tmp_path / "figures"
    folders = ("--store", store, "--figures", figures)
    scripts.write_text(json.dumps(made_up([2.0, 2.1, 2.2], "2026-11-20T10:00:00")))
    call(monkeypatch, "step", "encoder", *folders)
    assert "nothing stored to compare with" in capsys.readouterr().out
    (file,) = store.glob("*.json")
    assert set(json.loads(file.read_text())["benchmarks"]) == {"step", "encoder"}
    assert {path.name for path in figures.iterdir()} == {"bench_step.png", "bench_encoder.png"}

    scripts.write_text(json.dumps(made_up([1.0, 1.1, 1.2], "2026-11-21T10:00:00")))
    call(monkeypatch, "step", *folders)
    message = capsys.readouterr().out
    assert "-50%" in message
    assert "better" in message
    assert len(list(store.glob("*.json"))) == 2

    call(monkeypatch, "--compare", *folders)
    assert "-50%" in capsys.readouterr().out


def test_a_benchmark_that_fails_does_not_stop_the_others_and_is_not_stored(
    scripts, tmp_path, monkeypatch, capsys
):
    scripts.write_text(json.dumps(made_up([2.0], "2026-11-20T10:00:00")))
    with pytest.raises(SystemExit, match="failed: labels"):
        call(monkeypatch, "labels", "step", "--store", tmp_path / "results", "--figures", tmp_path)
    (file,) = (tmp_path / "results").glob("*.json")
    assert set(json.loads(file.read_text())["benchmarks"]) == {"step"}
    assert "labels ended with code 1" in capsys.readouterr().out


def test_a_quick_call_leaves_nothing_behind(scripts, tmp_path, monkeypatch):
    scripts.write_text(json.dumps({**made_up([2.0], "2026-11-20T10:00:00"), "quick": True}))
    before = set(tmp_path.rglob("*"))
    call(monkeypatch, "step", "--quick")
    assert set(tmp_path.rglob("*")) == before


def test_an_unknown_name_is_reported_with_those_there_are(scripts, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "stap")
    assert "there is no benchmark stap; known: step, encoder, labels" in capsys.readouterr().err


def test_other_sizes_are_stored_and_drawn_beside_the_usual_ones(scripts, tmp_path, monkeypatch, capsys):
    store, figures = tmp_path / "results", tmp_path / "figures"
    folders = ("--store", store, "--figures", figures)
    scripts.write_text(json.dumps(made_up([2.0], "2026-11-20T10:00:00")))
    call(monkeypatch, "step", *folders)
    requests = "int((arguments['--encoder'], arguments['--decoder']) != ('base', '0.6B'))"
    (tmp_path / "step.py").write_text(
        SCRIPT.format(template=str(scripts), name="step base+0.6B", code=requests)
    )
    call(monkeypatch, "--encoder", "base", "--decoder", "0.6B", *folders)  # the one that has both
    assert "nothing stored to compare with" in capsys.readouterr().out
    (file,) = store.glob("*.json")
    assert set(json.loads(file.read_text())["benchmarks"]) == {"step", "step base+0.6B"}
    assert {path.name for path in figures.iterdir()} == {"bench_step.png", "bench_step_base+0.6B.png"}


def test_a_benchmark_without_sizes_is_reported(scripts, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "labels", "--decoder", "0.6B")
    assert "labels takes no size of decoder; these do: step" in capsys.readouterr().err


def test_every_benchmark_is_a_script(benchmarks):
    assert all((benchmarks / script).is_file() for script in run.BENCHMARKS.values())
    assert {path.name for path in benchmarks.glob("bench_*.py")} == set(run.BENCHMARKS.values())
