"""The miniature twin of every paper's config through training, checkpoint, resume, probe and question."""

import json
from pathlib import Path

import pytest
import torch
from helpers.run_folders import latest_checkpoint

from uniaudio.build.encoders import load_encoder
from uniaudio.build.run_config import open_run
from uniaudio.commands.ask import answer_file_question
from uniaudio.commands.probe import run_probe
from uniaudio.commands.train import run_training
from uniaudio.config.path_variables import get_miniature_root
from uniaudio.train.checkpoint.reading import load_checkpoint

ROOT = Path(__file__).parent.parent.parent
NAMES = sorted(path.stem for path in (ROOT / "configs" / "papers").glob("*.yaml"))
SHORT = ["train.max_steps=6", "train.save_every=3", "train.log_every=1"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def here(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("UNIAUDIO_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(folder):
    result = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in result if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_training_to_questions(name, here):
    if name == "dual_implicit":  # stands on the run of stage one
        run_training(open_run("papers/dual_implicit_stage1", ["+mini", *SHORT]), None)
    again = ["+mini", *SHORT, "stages.0.schedule=constant"]
    if name == "dual_implicit_stages":  # killed at the boundary of its stages
        again += ["stages.0.steps=3", "stages.0.warmup=1", "stages.1.schedule=constant"]
    config = open_run(f"papers/{name}", again)
    run_training(open_run(f"papers/{name}", [*again, "output_dir=whole"]), None)
    run_training(open_run(f"papers/{name}", [*again, "train.max_steps=3"]), None)
    assert run_training(open_run(f"papers/{name}", again), "yes") == 0
    straight, continued = rows("whole"), rows(config.output_dir)
    assert [row["ids"] for row in straight] == [row["ids"] for row in continued]
    for one, other in zip(straight, continued, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-5)
    first, second = (load_checkpoint(latest_checkpoint(Path(f))).model for f in ("whole", config.output_dir))
    for key, tensor in first.items():
        torch.testing.assert_close(second[key], tensor, atol=2e-5, rtol=1e-4)
    encoder = load_encoder(config.output_dir)
    assert encoder.dim > 0
    noises = get_miniature_root() / "noises"
    scores = run_probe([config.output_dir], [f"noises={noises}"], out=Path("probes.json"), seeds=1)["scores"]
    assert 0 <= scores["noises"][config.output_dir]["knn"]["mean"] <= 1
    assert isinstance(
        answer_file_question(config.output_dir, noises / "000.wav", "What is the sound?", 4), str
    )
