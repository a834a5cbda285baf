"""The commands as a user types them, on a run that was really trained; some in a process of their own."""

import json
import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from uniaudio.cli import main

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}


def uniaudio(*arguments, expect=0):
    """Run a command in a process of its own; return what it told."""
    done = subprocess.run(
        [sys.executable, "-m", "uniaudio", *map(str, arguments)],
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if expect == 0 else done.stderr


@pytest.fixture
def here(capsys, fresh_accelerate):
    """Run a command in this process, which saves its start; returns what it told."""

    def output(*arguments, expect=0):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert (left.value.code or 0) == expect, captured
        return captured.out if expect == 0 else captured.err

    return output


@pytest.fixture
def mistake(here):
    """Run a command that must fail; returns what it told."""
    return partial(here, expect=2)


@pytest.mark.slow
def test_a_paper_in_miniature_from_check_to_routes(tmp_path, monkeypatch, here):
    """From an empty folder: parts are made on first use, and told apart from a config that lacks them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIAUDIO_CACHE", str(tmp_path / "cache"))
    assert "+mini" in here("check", "papers/mini/mowe", expect=2)
    output = uniaudio("check", "papers/mowe", "+mini")
    assert "tiny_english" in output
    assert "128 wide" in output  # 64 of the base and 32 of each router's choice
    uniaudio("train", "papers/mowe", "+mini", "train.max_steps=4", "train.log_every=2")
    assert "weak" in here("routes", "runs/mini/mowe")
    assert (tmp_path / "runs" / "mini" / "mowe" / "routes.png").is_file()
    assert "relative difference" in here("check-encoder", "runs/mini/mowe")
    assert "there is no config" in here("train", "realdata", "+mini", expect=2)


@pytest.mark.slow
def test_from_check_to_report(tone_run, here):
    out, tones = tone_run.parent / "out", tone_run.parent / "tones"
    output = uniaudio("check", tone_run)
    assert "tones:tone" in output
    assert "100.0%" in output
    assert "GFLOP per step" in output
    output = here("preview", tone_run, "-n", 3)
    assert output.count("supervised tokens") == 3
    assert "<audio 0." in output
    uniaudio("train", tone_run)
    probes = tone_run.parent / "probes.json"
    models = (tone_run.parent / "whisper", out, f"random:{tone_run.parent / 'whisper'}")
    here("probe", *models, "--data", f"tones={tones}", "--out", probes)
    scores = json.loads(probes.read_text())["scores"]["tones"]
    best = f"{models[0]}?pad_to=30"  # the untrained encoder, which the command adds
    assert list(scores) == [best, *map(str, models)]
    assert all(set(result) == {"linear", "mlp", "knn"} for result in scores.values())
    assert scores[str(out)]["linear"]["mean"] >= 0.9  # low and high tones are easy
    uniaudio("eval", out, "--out", tone_run.parent / "answers.json")
    answers = json.loads((tone_run.parent / "answers.json").read_text())["tones:tone"]
    assert answers["examples"] == 10
    assert {item["reference"] for item in answers["answers"]} == {"low", "high"}
    assert here("ask", out, tones / "1.wav", "Which tone is it?", "--max-new-tokens", 4)
    here("embed", out, tones / "0.wav", tones / "1.wav", "-o", tone_run.parent / "e.npz", "--frames")
    arrays = np.load(tone_run.parent / "e.npz")
    assert arrays["embeddings"].shape == (2, 64)
    np.testing.assert_allclose(arrays["frames_1"].mean(0), arrays["embeddings"][1], atol=1e-5)
    here("report", out)
    page = (out / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page
    assert "https://" not in page


@pytest.mark.slow
def test_mistakes_are_one_sentence(tone_run, tmp_path, mistake):
    tones = tone_run.parent / "tones"
    cases = [
        (("check", "nothing"), "there is no config 'nothing'"),
        (("ask", tmp_path, tmp_path / "no.wav", "what?"), "missing file"),
        (("ask", tmp_path, tones / "0.wav", "what?"), "neither a checkpoint nor a run folder"),
        (("probe", tone_run.parent / "whisper", "--data", tones), "write NAME=FOLDER"),
        (("probe", tone_run.parent / "whisper", "--data", f"x={tmp_path / 'no'}"), "there is no"),
        (("report", tmp_path / "no"), "there is no folder"),
        (("report", tmp_path), "holds no metrics.jsonl"),
        (("check", tone_run, "stages.0.budget.audio_seconds=0.5"), "less than the average clip"),
    ]
    (arguments, message), *_ = cases
    assert message in uniaudio(*arguments, expect=2)
    for arguments, message in cases:
        error = mistake(*arguments)
        assert message in error
        assert len([line for line in error.splitlines() if line.startswith("uniaudio:")]) == 1


def test_check_compares_templates_with_the_columns(tone_run, mistake):
    template = tone_run.with_name("tone.yaml")
    template.write_text(template.read_text().replace("label", "lable").replace("lables", "labels"))
    error = mistake("check", tone_run)
    assert (
        "template tone needs lable (did you mean 'label'?), but the columns are audio, label, split" in error
    )


@pytest.mark.slow
def test_a_checkpoint_for_another_decoder_is_refused(tone_run, mistake):
    uniaudio("train", tone_run, "train.max_steps=1")
    folder = tone_run.parent / "qwen"
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    tones = tone_run.parent / "tones"
    error = mistake("ask", tone_run.parent / "out", tones / "0.wav", "Which tone is it?")
    assert "was trained with the decoder" in error
