"""A run whose models and data have names of the Hub: from check to an upload, killed and continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
import torch
from conftest import tiny_qwen, tiny_whisper
from helpers.run_folders import latest_checkpoint
from local_hub.clients import connect_clients, go_offline

from uniaudio.build.encoders import load_encoder
from uniaudio.build.model import load_model
from uniaudio.cli import main
from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.config.strict_yaml import dump_yaml, load_yaml
from uniaudio.data.sources.http import LOCATIONS, VERSIONS
from uniaudio.model.model_files import CONFIG_FOLDERS
from uniaudio.train.checkpoint.reading import load_checkpoint

KINDS = {
    "audio": datasets.Audio(),
    "label": datasets.ClassLabel(names=["high", "low"]),
    "n": datasets.Value("int64"),
}


def write_tones(clips, folder, files=3):
    """Write the tones of ``tone_run`` as Parquet files with classes, as ``push_to_hub`` does."""
    rows = [json.loads(line) for line in (clips / "manifest.jsonl").read_text().splitlines()]
    (folder / "data").mkdir(parents=True)
    for split in ("train", "test"):
        chosen = [row for row in rows if row["split"] == split]
        for part in range(files):
            part_rows = chosen[part::files]
            columns = {
                "audio": [
                    {"bytes": (clips / row["audio"]).read_bytes(), "path": row["audio"]} for row in part_rows
                ],
                "label": [KINDS["label"].str2int(row["label"]) for row in part_rows],
                "n": list(range(len(part_rows))),
            }
            table = datasets.Dataset.from_dict(columns).with_format("arrow")[:]
            table = table.replace_schema_metadata(datasets.Features(KINDS).arrow_schema.metadata)
            name = f"{split}-{part:05d}-of-{files:05d}.parquet"
            pq.write_table(table, folder / "data" / name, row_group_size=4)


@pytest.fixture
def hub_run(tone_run, hub, chat_tokenizer, monkeypatch, fresh_accelerate):
    """The config of ``tone_run`` with nothing but names of private repositories."""
    here = tone_run.parent
    models = here / "hub" / "models" / "me"
    tiny_whisper().save_pretrained(models / "whisper")
    tiny_qwen(len(chat_tokenizer)).save_pretrained(models / "qwen", max_shard_size="100KB")
    chat_tokenizer.save_pretrained(models / "qwen")
    assert len(list((models / "qwen").glob("*.safetensors"))) > 1
    write_tones(here / "tones", here / "hub" / "datasets" / "me" / "tones")
    for name in ("whisper", "qwen", "tones"):
        shutil.rmtree(here / name)
    hub.private |= {"models/me/whisper", "models/me/qwen", "datasets/me/tones"}
    card = {"dataset": "tones", "load": {"hub": "me/tones"}, "license": "CC0-1.0"}
    splits = {"train": {}, "test": {"name": "test"}}
    (here / "tones.yaml").write_text(dump_yaml({**card, "splits": splits}))
    config = load_yaml(tone_run)
    config["encoders"]["whisper"]["path"] = "me/whisper"
    config["decoder"]["path"] = "me/qwen"
    config["stages"][0]["schedule"] = "constant"  # another one would end where max_steps does
    tone_run.write_text(dump_yaml(config))
    connect_clients(monkeypatch, hub, here / "hf", token="hf_me")
    VERSIONS.clear()
    LOCATIONS.clear()
    monkeypatch.chdir(here)
    return tone_run


def run_command(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    return end.value.code or 0


def read_rows(folder):
    result = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return [row for row in result if "loss" in row]


def compare_runs(one, other):
    """Compare examples and losses of every step, and the weights at the end."""
    straight, continued = read_rows(one), read_rows(other)
    assert [row["ids"] for row in straight] == [row["ids"] for row in continued]
    assert [row["loss"] for row in straight] == pytest.approx([row["loss"] for row in continued], abs=2e-5)
    first, second = (load_checkpoint(latest_checkpoint(Path(folder))).model for folder in (one, other))
    for key, tensor in first.items():
        assert tensor.allclose(second[key], atol=2e-5, rtol=1e-4), key


def test_everything_by_name(hub_run, hub, capsys, monkeypatch):
    assert run_command("check", hub_run) == 0
    assert not hub.list_requests(host="cdn", pattern="models")
    assert run_command("plan", hub_run, "--gpus", "2") == 0
    assert run_command("preview", hub_run, "-n", "2") == 0
    assert "low" in capsys.readouterr().out
    assert run_command("train", hub_run, "output_dir=whole") == 0
    assert run_command("train", hub_run, "train.max_steps=4") == 0
    hub.faults.add("datasets/me/tones", 503)
    monkeypatch.setattr("uniaudio.hub_client.time.sleep", lambda seconds: None)
    assert run_command("train", hub_run, "--resume") == 0
    compare_runs("whole", "out")
    capsys.readouterr()
    assert run_command("eval", "out") == 0
    assert "10 rows" in capsys.readouterr().out
    assert run_command("export", "out", "written", "--push-to-hub", "me/tones_encoder") == 0
    assert (hub_run.parent / "hub" / "models" / "me" / "tones_encoder" / "model.safetensors").is_file()
    before = len(hub.requests)
    go_offline(monkeypatch)  # the data are streamed, the models are in the cache
    assert run_command("ask", "out", hub_run.parent / "a.wav", "Which tone is it?") == 2  # no such file
    assert run_command("export", "out", "again") == 0
    assert run_command("eval", "out") == 2
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err
    assert len(hub.requests) == before


def test_a_moved_repository_is_named_at_a_resume(hub_run, capsys):
    assert run_command("train", hub_run, "train.max_steps=4") == 0
    file = hub_run.parent / "hub/datasets/me/tones/data/train-00000-of-00003.parquet"
    shutil.copyfile(file.with_name("train-00001-of-00003.parquet"), file)
    assert run_command("train", hub_run, "--resume") == 2
    assert "tones" in capsys.readouterr().err


def test_a_run_keeps_the_commits_of_its_models(hub_run, chat_tokenizer, capsys):
    """Repositories get new commits, often of their README alone; here the weights change, too."""
    assert run_command("train", hub_run, "train.max_steps=4") == 0
    models = hub_run.parent / "hub" / "models" / "me"
    for name, model in (("whisper", tiny_whisper(1)), ("qwen", tiny_qwen(len(chat_tokenizer), 1))):
        shutil.copytree(models / name, models / f"{name}@before")
        for file in (models / name).glob("*.safetensors*"):
            file.unlink()
        model.save_pretrained(models / name)
    CONFIG_FOLDERS.clear()  # as in a new process
    decoder = load_model("out").model.decoder.lm.state_dict()
    for name, tensor in tiny_qwen(len(chat_tokenizer)).state_dict().items():
        assert torch.equal(decoder[name], tensor)
    load_encoder("out")
    capsys.readouterr()
    assert run_command("train", hub_run, "--resume", "decoder.revision=main") == 2
    assert "was trained with the decoder me/qwen" in capsys.readouterr().err
    assert run_command("train", hub_run, "--resume") == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_run_goes_on_with_the_same_examples(hub_run, hub, monkeypatch):
    command = [sys.executable, "-m", "uniaudio", "train", str(hub_run), "stages.0.steps=400"]
    root = Path(__file__).parent.parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with subprocess.Popen(command, cwd=hub_run.parent, env=environment, stderr=subprocess.PIPE) as process:
        while latest_checkpoint(hub_run.parent / "out") is None and process.poll() is None:
            time.sleep(0.05)
        assert process.poll() is None, process.stderr.read()
        os.kill(process.pid, signal.SIGKILL)
    steps = max(row["step"] for row in read_rows("out")) + 8
    settings = ["stages.0.steps=400", f"train.max_steps={steps}"]
    assert run_training(load_run(hub_run, settings), "yes") in (0, 75)
    assert run_training(load_run(hub_run, [*settings, "output_dir=whole"]), None) in (0, 75)
    compare_runs("whole", "out")
