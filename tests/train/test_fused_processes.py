"""Experts without frames and encoders without clips in two real processes, under every engine."""

import json
from pathlib import Path

import pytest
from helpers import forked_processes

TESTS = Path(__file__).parent.parent
WORKER, SEVERAL = TESTS / "uneven_ranks.py", TESTS / "several_runs.py"


def run(*words, **how):
    done = forked_processes.run(words, timeout=560, **how)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


PAPERS = ("mowe", "dual_moe_concat", "dual_explicit")
ENGINES = ("ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3")  # accelerate does not leave DeepSpeed again


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A few steps of each paper, in one process and in two."""
    folder = tmp_path_factory.mktemp("papers")
    # constant dropout-free decoder, so that only the order of sums differs
    settings = [
        "+mini",
        "train.max_steps=4",
        "train.log_every=1",
        "train.micro_batches=2",
        "stages.0.warmup=0",
        "decoder.train=frozen",
    ]
    environment = {"UNIAUDIO_CACHE": str(folder / "cache")}
    for count, name in ((1, "one"), (2, "two")):
        runs = [[f"papers/{paper}", *settings, f"output_dir={folder / name / paper}"] for paper in PAPERS]
        (folder / f"{name}.json").write_text(json.dumps(runs))
        run(SEVERAL, folder / f"{name}.json", folder=folder, environment=environment, processes=count)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPERS)
def test_two_processes_give_the_losses_of_one(name, folder):
    """The whole loop: task losses, auxiliary losses over both ranks, and weights."""
    one, two = (
        [json.loads(line) for line in (folder / processes / name / "metrics.jsonl").read_text().splitlines()]
        for processes in ("one", "two")
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


@pytest.fixture(scope="module")
def uneven():
    """What two processes tell of every engine, one of which sends its clips and frames elsewhere than the other."""
    return json.loads(run(WORKER, *ENGINES, processes=2).strip().splitlines()[-1])


@pytest.mark.slow
def test_uneven_routes_under_ddp(uneven):
    """One rank sends all its clips to the first weak encoder, the other to the second; likewise frames to experts."""
    for losses in (uneven["ddp"]["mowe"], uneven["ddp"]["moe"]):
        assert len(losses) == 3
        assert losses[-1] < losses[0]
    assert uneven["ddp"]["clips_seen"] == [
        [2, 1, 1],
        [1, 2, 1],
    ]  # clips in the first step, silence counted as one


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_uneven_routes_give_the_same_numbers_under_every_engine(engine, uneven):
    """Encoders and experts that a rank does not use take part in what the ranks exchange."""
    message, ddp = uneven[engine], uneven["ddp"]
    assert message["clips_seen"] == ddp["clips_seen"]
    for kind in ("mowe", "moe"):
        assert message[kind] == pytest.approx(ddp[kind], rel=1e-5)
    for weights, expected in zip(message["weights"], ddp["weights"], strict=True):
        assert weights == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_parts_that_a_micro_batch_leaves_out_have_a_gradient_of_zero(engine, uneven):
    """Some are reached on one rank alone, some in the first micro-batch of a step alone, and one never."""
    assert uneven[engine]["parts_off"] < 1e-6
