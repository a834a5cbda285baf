"""A run folder of an earlier version goes on today, with the same examples and losses as it would have then."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from helpers.run_folders import latest_checkpoint

from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.train.checkpoint.integrity import find_damage
from uniaudio.train.checkpoint.reading import load_checkpoint

STORED = Path(__file__).parents[1] / "stored_run"

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def write_clips(folder):
    """Write the clips of the stored manifest: tones of 200 and 2000 Hz, without noise."""
    folder.mkdir()
    for index in range(12):
        time = np.arange(4800 + 400 * index) / 16000
        samples = 8000 * np.sin(2 * np.pi * (200 if index % 2 else 2000) * time)
        soundfile.write(folder / f"{index}.wav", np.round(samples).astype(np.int16), 16000)


def test_a_run_of_an_earlier_version_goes_on_with_the_same_losses(tmp_path):
    folder = tmp_path / "stored"
    shutil.copytree(STORED, folder)
    write_clips(folder / "tones")
    out = folder / "run"
    assert not find_damage(out / "checkpoints" / "step-000002")
    assert run_training(load_run(str(folder / "run.yaml"), [f"output_dir={out}"]), "yes") == 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row.get("step", 0) > 2 and "loss" in row]
    expected = json.loads((STORED / "expected.json").read_text())
    assert [row["ids"] for row in steps] == [row["ids"] for row in expected]
    for key in ("step", "loss", "grad_norm"):
        # another processor rounds otherwise
        assert [row[key] for row in steps] == pytest.approx([row[key] for row in expected], rel=1e-4)
    state = load_checkpoint(latest_checkpoint(out), ema=True).state
    assert (state["step"], state["skips"]["reasons"]) == (4, {"tones": {"missing file": 1}})
