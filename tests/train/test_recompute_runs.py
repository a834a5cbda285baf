"""What recomputes is chosen by the memory of a process, told, and changes no number."""

import json
import shutil

import pytest
import torch

from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.data.recipe import load_recipe
from uniaudio.estimate.activation_checkpointing import estimate_clip
from uniaudio.estimate.memory import MARGIN
from uniaudio.estimate.stage_plan import plan_stage
from uniaudio.train.activation_checkpointing import DECODER, Recomputing
from uniaudio.units import GIB

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


@pytest.fixture
def plan(tone_run):
    config = load_run(str(tone_run))
    clip = estimate_clip(load_recipe(config.stages[0].recipe, near=config.folder), 30.0)
    return plan_stage(config, 0, clip, torch.float32)


def train(tone_run, name, *overrides):
    """Run four steps and return rows of the metrics: the stages, and the losses."""
    folder = tone_run.parent / name
    config = load_run(str(tone_run), [f"output_dir={folder}", "train.max_steps=4", *overrides])
    assert run_training(config, "auto") == 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("event") == "stage"], [
        row["loss"] for row in rows if "loss" in row
    ]


def gib(size):
    return size / MARGIN / GIB


def test_the_cheapest_that_suffices_is_chosen(plan):
    """For every memory size: off, then what costs least, then both; too little memory takes all there is."""
    sizes = {
        parts: plan.add_recomputing(parts) for parts in ((), (DECODER,), ("whisper",), ("whisper", DECODER))
    }
    total = {parts: option.compute_total("single", 1) for parts, option in sizes.items()}
    work = {parts: option.flops for parts, option in sizes.items()}
    assert total["whisper", DECODER] < min(total[DECODER,], total["whisper",])
    assert max(total[DECODER,], total["whisper",]) < total[()]
    assert work[()] < min(work[DECODER,], work["whisper",])
    for limit in (*total.values(), 0.9999 * total[()], 0.9999 * max(total[DECODER,], total["whisper",]), 1.0):
        fitting = [parts for parts in sizes if total[parts] <= limit]
        expected = min(fitting, key=work.__getitem__, default=("whisper", DECODER))
        result = plan.find_cheapest("single", 1, limit, ["whisper", DECODER])
        assert set(result.recomputed) == set(expected)
    assert plan.find_cheapest("single", 1, 1.0, [DECODER]).recomputed == (DECODER,)


def test_a_run_without_enough_memory_recomputes_and_gives_the_same_losses(tone_run, plan, capsys):
    (stage,), losses = train(tone_run, "plenty")
    assert stage["recompute"] == []
    assert "estimated_gib" not in stage  # a CPU has no limit of its own
    needed = plan.add_recomputing(["whisper", DECODER]).compute_total("single", 1)
    (stage,), result = train(tone_run, "tight", f"train.memory_gib={gib(needed) * 1.0001}")
    assert set(stage["recompute"]) == {"whisper", DECODER}
    assert stage["estimated_gib"] == pytest.approx(needed / GIB)
    assert stage["estimated_gib"] <= stage["limit_gib"]
    assert result == losses
    assert "recompute: whisper, decoder;" in capsys.readouterr().out


def test_a_resumed_run_may_choose_anew_and_too_little_memory_is_reported(tone_run, plan, capsys):
    plenty = gib(plan.compute_total("single", 1)) * 1.0001
    (stage,), losses = train(tone_run, "run", f"train.memory_gib={plenty}", "train.save_every=2")
    assert stage["recompute"] == []
    assert stage["limit_gib"] >= stage["estimated_gib"]
    shutil.rmtree(tone_run.parent / "run" / "checkpoints" / "step-000004")
    stages, result = train(tone_run, "run", "train.memory_gib=0.0001", "train.save_every=2")
    assert set(stages[-1]["recompute"]) == {"whisper", DECODER}
    assert result == losses
    assert "lower stages.one.budget.audio_seconds" in capsys.readouterr().out


def test_settings_override_the_choice(tone_run):
    always = ("encoders.whisper.recompute=true", "decoder.recompute=false")
    (stage,), losses = train(tone_run, "always", *always)
    assert stage["recompute"] == ["whisper"]
    (stage,), result = train(tone_run, "bounded", *always, "train.memory_gib=0.0001")
    assert stage["recompute"] == ["whisper"]
    assert result == losses


def test_sentences():
    assert Recomputing().describe("budget") == ""
    assert Recomputing(("a",)).describe("budget") == "recompute: a"
    message = Recomputing(("a",), 3 * GIB, 5 * GIB, 4 * GIB, 0.2)
    assert message.fits
    assert message.describe("budget") == (
        "recompute: a; 3.00 GiB estimated of 4.00 GiB (5.00 GiB without, 20.0% more FLOPs)"
    )
    assert not Recomputing(("a",), 5 * GIB, 5 * GIB, 4 * GIB).fits
    assert "could not estimate the memory (why)" in Recomputing(obstacle="why").describe("budget")
