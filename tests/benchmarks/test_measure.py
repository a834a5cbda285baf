"""The harness: sides take turns in processes of their own, and a peer's checkout can be one of them."""

import argparse
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import measure
import pytest
from measure import CHECKOUT, Benchmark, in_turns, refuse_disagreement, spawn
from rich.console import Console

SCRIPT = '''
"""A made-up benchmark."""

import os

from measure import Benchmark, main


def prepare(folder, quick):
    (folder / "data.txt").write_text("clips")


def figures(run):
    assert (run.shared / "data.txt").read_text() == "clips"
    assert not list(run.scratch.iterdir())
    (run.scratch / "mine").write_text("x")
    print("chatter before the figures")
    seconds = {"stock": 4.0, "ours": 2.0}[run.side]
    return {"seconds": seconds, "loss": 1.0, "steps": run.steps, "trained": float(os.environ["OMP_NUM_THREADS"])}


if __name__ == "__main__":
    sides = ("stock", "ours")
    main(
        Benchmark(
            "made up", "Made up", {"mix": sides}, figures, same={"mix": sides}, prepare=prepare, steps=(5, 1),
            ratios={"times_faster": "seconds"}, checkout="mix", whole=True,
        )
    )
'''


def benchmark(**changes) -> Benchmark:
    sides = {"cases": {"mix": ("stock", "ours")}, "figures": lambda run: None, **changes}
    return Benchmark("made up", "Made up", **sides)


def arguments(**changes) -> argparse.Namespace:
    given = {"runs": 3, "quick": False, "threads": 1, "peer_checkout": None, "peer_command": None}
    return argparse.Namespace(**{**given, **changes})


@pytest.mark.slow
def test_a_script_measures_its_sides_and_the_users_checkout(tmp_path, benchmarks):
    script, out, seen = tmp_path / "made_up.py", tmp_path / "result.json", tmp_path / "checkout" / "seen"
    script.write_text(SCRIPT)
    seen.parent.mkdir()
    copy = "import os,shutil;shutil.copy(os.environ['UNIAUDIO_BENCH_DATA']+'/data.txt','seen')"
    peer = ["--peer-checkout", str(seen.parent), "--peer-command", f'{sys.executable} -c "{copy}"']
    done = subprocess.run(
        [sys.executable, str(script), "--quick", "--threads", "1", "--out", str(out), *peer],
        env={**os.environ, "PYTHONPATH": str(benchmarks)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(out.read_text())
    assert result == json.loads(done.stdout.splitlines()[-1])
    assert result["benchmark"] == "made up"
    assert result["quick"]
    assert {"processor", "cores", "torch", "when", "commit", "load_before"} <= set(result["machine"])
    sides = result["cases"]["mix"]
    assert list(sides) == ["stock", CHECKOUT, "ours"]
    assert sides["ours"]["times_faster"]["value"] == 2.0
    assert sides["ours"]["steps"]["value"] == 1  # the quick number
    assert sides["ours"]["trained"]["value"] == 1  # threads
    assert {"wall_seconds", "peak_gib", "load"} == set(sides[CHECKOUT])
    assert seen.read_text() == "clips"  # ran in the checkout, over the same data


def test_sides_take_turns(tmp_path, monkeypatch):
    order = []

    def child(script, benchmark, case, side, shared, arguments):
        order.append(side)
        return {"seconds": 4.0 if side == "stock" else 2.0 + len(order)}

    monkeypatch.setattr(measure, "child", child)
    console = Console(file=io.StringIO())
    sides = in_turns(Path("none"), benchmark(), "mix", tmp_path, arguments(), console)
    assert order == ["stock", "ours"] * 3
    assert sides["ours"]["seconds"] == {"value": 4.0, "runs": [4.0, 6.0, 8.0]}


def test_a_process_is_measured_with_its_descendants():
    grow = "x = b'1' * (200 << 20)"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grow!r}]); print('done')"
    text, whole = spawn([sys.executable, "-c", nested], {}, "nested")
    assert text == "done\n"
    assert whole["peak_gib"] > 200 / 1024
    assert whole["wall_seconds"] > 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["no-such-program-at-all"], "cannot be started"),
        ([sys.executable, "-c", "print('here'); raise SystemExit(3)"], "ended with code 3\nhere"),
    ],
)
def test_a_command_that_fails_is_reported_by_its_side(command, message):
    with pytest.raises(SystemExit, match=f"(?s){CHECKOUT[:4]}.*{message}"):
        spawn(command, {}, CHECKOUT)


def test_sides_that_must_compute_the_same_are_held_to_it():
    single = benchmark(same={"mix": ("stock", "ours"), "30": ("stock", "ours")})
    losses = {"stock": {"loss": {"value": 4.0}}, "ours": {"loss": {"value": 4.001}}}
    refuse_disagreement(single, {"cases": {"mix": losses}})
    for other in (4.1, float("nan")):
        losses["ours"]["loss"]["value"] = other
        with pytest.raises(SystemExit, match="mix: stock, ours do not compute the same"):
            refuse_disagreement(single, {"cases": {"mix": losses}})


def test_checkout_and_command_belong_together(monkeypatch, tmp_path, capsys):
    for words in (["--peer-checkout", str(tmp_path)], ["--peer-checkout", "gone", "--peer-command", "x"]):
        monkeypatch.setattr(sys, "argv", ["bench", *words])
        with pytest.raises(SystemExit):
            measure.parse(benchmark(checkout="mix"))
    message = capsys.readouterr().err
    assert "belong together" in message
    assert "there is no folder gone" in message
