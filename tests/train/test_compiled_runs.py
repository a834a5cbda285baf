"""Runs with compiled layers, in real processes under every engine that can: the numbers of plain layers."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run

ROOT = Path(__file__).parent.parent.parent
LAUNCHER = Path(sys.prefix) / "bin" / "accelerate"
WORKER = ROOT / "tests" / "compiled_run.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
MOST = 24  # graphs: loops between the parts of a layer, encoder and decoder, with and without gradients

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("fresh_accelerate")]


def run(start, config, *overrides):
    """Train four steps in a process of its own; return its output."""
    given = ["train.max_steps=4", "evaluate.max_new_tokens=4", *overrides]
    done = subprocess.run(
        [str(part) for part in (*start, config, *given)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def launched(engine):
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    file = ROOT / "configs" / "accelerate" / f"{engine}.yaml"
    return (
        LAUNCHER,
        "launch",
        "--config_file",
        file,
        "--num_processes",
        2,
        "--main_process_port",
        port,
        WORKER,
    )


def losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def assert_same_run(folder, plain):
    assert losses(folder) == pytest.approx(losses(plain), rel=1e-5)
    assert len(losses(folder)) == 4
    ours, single = (
        load_file(f / "checkpoints" / "step-000004" / "model.safetensors") for f in (folder, plain)
    )
    assert ours.keys() == single.keys()
    for name, tensor in single.items():
        assert (ours[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


def plain_run(config, *overrides):
    """Train the same steps of plain layers in this process; return the folder."""
    assert run_training(load_run(config, ["train.max_steps=4", *overrides]), None) == 0
    return config.parent / "out"


@pytest.mark.parametrize("engine", ["one", "ddp", "zero1", "zero2", "fsdp2"])
def test_the_numbers_of_plain_layers(engine, tone_run):
    if engine.startswith("zero"):
        pytest.importorskip("deepspeed")
    start = (sys.executable, WORKER) if engine == "one" else launched(engine)
    out = tone_run.parent / engine
    message = run(start, tone_run, f"output_dir={out}", "train.evaluate_every=2")
    counts = [int(n) for n in re.findall(r'"graphs": (\d+)', message)]
    assert counts
    assert all(4 <= count <= MOST for count in counts), counts
    assert_same_run(out, plain_run(tone_run))


def test_low_rank_updates_recomputed_and_resumed(tone_run, tmp_path):
    """Too little memory, so that both parts choose to recompute."""
    settings = ["encoders.whisper.train=lora", "decoder.train=lora", "decoder.lora.dropout=0"]
    settings.append("train.memory_gib=0.0001")
    out = tmp_path / "compiled"
    worker = (sys.executable, WORKER)
    run(worker, tone_run, *settings, f"output_dir={out}", "train.max_steps=2", "train.save_every=2")
    run(worker, tone_run, *settings, f"output_dir={out}", "--resume")
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    chosen = [set(row["recompute"]) for row in rows if row.get("event") == "stage"]
    assert chosen == [{"whisper", "decoder"}] * 2
    assert_same_run(out, plain_run(tone_run, *settings))


def test_zero3_is_refused(tone_run):
    done = subprocess.run(
        [str(part) for part in (*launched("zero3"), tone_run)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "train.compile: zero3 gathers" in done.stderr + done.stdout
