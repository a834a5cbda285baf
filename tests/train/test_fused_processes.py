"""Experts without frames and encoders without clips in two real processes, under every engine."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
WORKER = Path(__file__).parent.parent / "uneven_ranks.py"


def run(*arguments, cwd=None, **environment):
    done = subprocess.run(
        [str(a) for a in arguments],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=560,
        cwd=cwd,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mowe", "dual_moe_concat", "dual_explicit"])
def test_two_processes_give_the_losses_of_one(name, tmp_path_factory, tmp_path):
    """The whole loop: task losses, auxiliary losses over both ranks, and weights."""
    cache = tmp_path_factory.getbasetemp() / "fused_cache"
    # constant dropout-free decoder, so that only the order of sums differs
    settings = [
        f"papers/{name}",
        "+mini",
        "train.max_steps=4",
        "train.log_every=1",
        "train.micro_batches=2",
        "stages.0.warmup=0",
        "decoder.train=frozen",
    ]
    for folder, launch in (("one", [sys.executable]), ("two", LAUNCH)):
        run(
            *launch,
            "-m",
            "uniaudio.train",
            *settings,
            f"output_dir={tmp_path / folder}",
            cwd=tmp_path,
            UNIAUDIO_CACHE=str(cache),
        )
    one, two = (
        [json.loads(line) for line in (tmp_path / folder / "metrics.jsonl").read_text().splitlines()]
        for folder in ("one", "two")
    )
    pairs = [(a, b) for a, b in zip(one, two, strict=True) if "loss" in a]
    assert len(pairs) == 4
    for alone, shared in pairs:
        assert shared["loss"] == pytest.approx(alone["loss"], rel=2e-4)
        assert shared["grad_norm"] == pytest.approx(alone["grad_norm"], rel=2e-2)
        for kind, value in alone["auxiliary"].items():
            assert shared["auxiliary"][kind] == pytest.approx(value, rel=1e-3, abs=1e-6)
        for task, choices in alone["choices"].items():
            assert shared["choices"][task] == pytest.approx(choices, abs=1e-3)


def uneven(engine):
    """Train under an engine where one rank sends its clips (and frames) elsewhere than the other; return the facts."""
    if engine.startswith("zero") and shutil.which("g++") is None:
        pytest.skip("DeepSpeed on CPUs compiles a small module and needs g++")
    told = json.loads(run(*LAUNCH, WORKER, engine).strip().splitlines()[-1])
    assert told["engine"] == engine
    return told


@pytest.fixture(scope="module")
def uneven_ddp():
    return uneven("ddp")


@pytest.mark.slow
def test_uneven_routes_under_ddp(uneven_ddp):
    """One rank sends all its clips to the first weak encoder, the other to the second; likewise frames to experts."""
    for losses in (uneven_ddp["mowe"], uneven_ddp["moe"]):
        assert len(losses) == 3
        assert losses[-1] < losses[0]
    assert uneven_ddp["heard"] == [[2, 1, 1], [1, 2, 1]]  # clips in the first step, silence counted as one


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["zero0", "zero1", "zero2", "zero3", "fsdp2"])
def test_uneven_routes_give_the_same_numbers_under_every_engine(engine, uneven_ddp):
    """Encoders and experts that a rank does not use take part in what the ranks exchange."""
    told = uneven(engine)
    assert told["heard"] == uneven_ddp["heard"]
    for kind in ("mowe", "moe"):
        assert told[kind] == pytest.approx(uneven_ddp[kind], rel=1e-5)
    for weights, expected in zip(told["weights"], uneven_ddp["weights"], strict=True):
        assert weights == pytest.approx(expected, rel=1e-4, abs=1e-4)
