"""Experiment trackers, for real: what they hold after a run and after its resume."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState

from uniaudio.commands.train import RunEvaluator
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml, load_yaml
from uniaudio.data.eval_examples import iterate_examples, open_examples
from uniaudio.data.recipe import load_recipe
from uniaudio.errors import UserError
from uniaudio.train.tracker_kinds import AnswerSample, flatten_settings
from uniaudio.train.trackers import ExperimentTrackers, refuse_missing_trackers

RESULTS = {
    "tones:tone": {"metric": "accuracy", "score": 0.5, "interval": [0.3, 0.7], "loss": 1.5, "examples": 10}
}
SAMPLES = [
    AnswerSample("tones:tone", "tones/test/1", "Which tone is it?", "low", "high", np.zeros(1600, np.int16)),
    AnswerSample("tones:tone", "tones/test/2", "Name the tone.", "high", "high", None),
]
SECRET = "key-9f8e7d6c5b"


@pytest.fixture
def tracked(tone_run, tmp_path, monkeypatch):
    """A function that gives the config of a run with trackers; its encoder's folder is behind a secret variable."""
    PartialState(cpu=True)
    monkeypatch.setenv("SECRET_FOLDER", SECRET)
    monkeypatch.chdir(tmp_path)
    text = tone_run.read_text()
    tone_run.write_text(text.replace("path: whisper", "path: ${env:SECRET_FOLDER}/whisper"))

    def make(*names):
        words = [f"train.trackers=[{', '.join(names)}]", "train.project=tones", "train.tags=[small, first]"]
        config = load_run(tone_run, [*words, "train.run_name=run1"])
        Path(config.output_dir).mkdir(exist_ok=True)
        return config

    return make


def track(config, step, warn=pytest.fail):
    """Log a row and an evaluation behind a step, as a run does."""
    trackers = ExperimentTrackers(config, step, warn)
    trackers.log({"train/loss": 2.0 - step, "train/tasks/tone": 1.0, "train/lr/adapter": 1e-3}, step + 1)
    trackers.log_evaluation(RESULTS, SAMPLES, step + 1)
    trackers.finish()


def files_with(folder, text):
    return [file for file in folder.rglob("*") if file.is_file() and text.encode() in file.read_bytes()]


def test_trackio_holds_a_run_and_its_resume(tracked, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    if str(trackio.TRACKIO_DIR) != str(tmp_path / "trackio"):
        pytest.skip("was imported with another folder")
    config = tracked("trackio")
    track(config, 0)
    track(config, 1)
    runs = list(trackio.Api().runs("tones"))
    assert [run.name for run in runs] == ["run1"]
    logs = trackio.SQLiteStorage.get_logs("tones", "run1")
    losses = [(row["step"], row["train/loss"]) for row in logs if "train/loss" in row]
    assert losses == [(1, 2.0), (2, 1.0)]
    assert any("evaluation/tones:tone/score" in row for row in logs)
    assert any(str(key).startswith("clips/") for row in logs for key in row)
    assert list((tmp_path / "trackio").rglob("*.wav"))
    assert files_with(tmp_path / "trackio", SECRET) == []


def test_mlflow_keeps_files_of_a_run_and_its_resume(tracked, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    config = tracked("mlflow")
    track(config, 0)
    track(config, 1)
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("tones")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "run1"
    assert {"small": "true", "first": "true"}.items() <= run.data.tags.items()
    assert run.data.params["stages.0.steps"] == "8"
    losses = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in losses] == [(1, 2.0), (2, 1.0)]
    folder = tmp_path / "mlruns" / experiment.experiment_id / run.info.run_id / "artifacts"
    table = json.loads((folder / "evaluation" / "step-000001.json").read_text())
    assert table["data"][0][:5] == ["tones:tone", "accuracy", 0.5, 0.3, 0.7]
    assert (folder / "answers" / "step-000002" / "0.wav").is_file()
    assert "${env:SECRET_FOLDER}" in (folder / "config.yaml").read_text()
    assert files_with(tmp_path / "mlruns", SECRET) == []


@pytest.mark.slow
def test_wandb_writes_a_run_and_its_resume_offline(tracked, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    config = tracked("wandb")
    track(config, 0)
    track(config, 1)
    folders = sorted((tmp_path / "out" / "wandb").glob("offline-run-*"))
    ids = {folder.name.rpartition("-")[2] for folder in folders}
    assert ids == {json.loads((tmp_path / "out" / "trackers.json").read_text())["wandb"]}
    stored = b"".join(file.read_bytes() for file in (tmp_path / "out").rglob("*.wandb"))
    for text in (b"train/tasks/tone", b"train/lr/adapter", b"evaluation/tones:tone/score", b"small"):
        assert text in stored
    assert list((tmp_path / "out").rglob("*.wav"))
    assert files_with(tmp_path / "out", SECRET) == []
    assert files_with(tmp_path / "out", "0123456789" * 4) == []


def test_tensorboard_gets_settings_texts_and_clips(tracked, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tracked("tensorboard")
    track(config, 0)
    # TensorBoard reads the files of a folder in the order of their names: second, host, process, a counter without
    # leading zeros. A resumed run is another process in a later second; here the second alone tells the files apart.
    time.sleep(1.1)
    track(config, 1)
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    tags = events.Tags()
    assert {"train/loss", "train/tasks/tone", "evaluation/tones:tone/score"} <= set(tags["scalars"])
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 2.0), (2, 1.0)]
    assert tags["audio"] == ["clips/tones/test/1"]
    texts = {tag: events.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in tags["tensors"]}
    assert "steps: 8" in texts["config/text_summary"]
    assert texts["tags/text_summary"] == "small, first"
    assert "| tones:tone | Which tone is it? | low | high |" in texts["answers/text_summary"]
    assert files_with(tmp_path / "out", SECRET) == []
    assert files_with(tmp_path / "out", "stages.0.steps")  # among the hyperparameters


def test_sets_with_the_same_clips_are_shown_with_the_questions_of_each(tone_run):
    folder = tone_run.parent
    template = load_yaml(folder / "tone.yaml") | {"task": "name", "prompts": ["Say it.<audio>"]}
    (folder / "name.yaml").write_text(dump_yaml(template))
    pairs = [{"dataset": "tones", "template": name} for name in ("tone", "name")]
    (folder / "two.yaml").write_text(dump_yaml({"recipe": "two", "train": pairs[:1], "evaluate": pairs}))
    config = load_run(tone_run)
    recipe = load_recipe("two", near=config.folder)
    ids = [
        example.id
        for entry in recipe.evaluate
        for _, (example, _) in iterate_examples(open_examples(entry, 1), 30.0)
    ]
    assert ids[0] == ids[1]
    answers = {"answers": [{"id": ids[0], "reference": "low", "answer": "high"}]}
    evaluator = RunEvaluator(config, [recipe], None, {}, [])
    shown = evaluator.collect_samples({entry.name: answers for entry in recipe.evaluate})
    assert [sample.question == "Say it." for sample in shown] == [False, True]
    assert np.array_equal(shown[0].clip, shown[1].clip)


class Broken:
    name = "broken"

    def log(self, scalars, step):
        raise ConnectionError("the server is away")


def test_a_tracker_that_fails_later_does_not_end_the_run(tracked):
    said = []
    trackers = ExperimentTrackers(tracked(), 0, said.append)
    trackers.trackers.append(Broken())
    trackers.log({"train/loss": 1.0}, 1)
    trackers.log({"train/loss": 1.0}, 2)
    assert said == ["broken failed and is not used any more (the server is away)"]


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow", "tensorboard"])
def test_a_missing_tracker_names_its_extra(tracked, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        UserError, match=rf"train.trackers: {name} needs the extra {name}: pip install 'uniaudio"
    ):
        refuse_missing_trackers(tracked(name))


def test_settings_are_flat_by_their_paths():
    values = {"seed": 0, "stages": [{"lr": {"a": 1.5}, "name": "one"}], "guard": None, "tags": []}
    assert flatten_settings(values) == {
        "seed": 0,
        "stages.0.lr.a": 1.5,
        "stages.0.name": "one",
        "guard": None,
        "tags": "[]",
    }
