"""Real processes: one and two of them, stopped, killed, continued. Most are forked from one that has imported all."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from helpers import forked_processes

from uniaudio.cli import main

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}


def command(config, *overrides):
    return ["-m", "uniaudio.train", str(config), *overrides]


def run(config, *overrides, processes=1, expect=0):
    done = forked_processes.run(command(config, *overrides), processes=processes)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def run_from_the_shell(config, *overrides, processes=1, expect=0):
    """Do the same with new interpreters, as users do."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    done = subprocess.run(
        [sys.executable, *(launch if processes > 1 else []), *command(config, *overrides)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def rows(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def losses(folder):
    return {row["step"]: row["loss"] for row in rows(folder) if "loss" in row}


def ids(folder):
    return {
        row["step"]: sorted(i for step in row["ids"] for i in step) for row in rows(folder) if "loss" in row
    }


@pytest.fixture
def whole(tone_run, tmp_path):
    """An uninterrupted run of one process."""
    run(tone_run, f"output_dir={tmp_path / 'whole'}")
    return tmp_path / "whole"


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tone_run, tmp_path, whole):
    run_from_the_shell(tone_run, f"output_dir={tmp_path / 'two'}", processes=2)
    one, two = losses(whole), losses(tmp_path / "two")
    assert one.keys() == two.keys() == set(range(1, 9))
    for step, loss in one.items():
        assert two[step] == pytest.approx(loss, rel=2e-4)
    assert ids(tmp_path / "two") == ids(whole)
    assert one[8] < one[1]
    assert one != two  # sums in another order: it really were two processes
    assert rows(whole)[-1] == {"event": "finished", "step": 8}
    drawn = [
        [row["drawn"] for row in rows(folder) if row.get("event") == "saved"]
        for folder in (whole, tmp_path / "two")
    ]
    assert drawn[0] == drawn[1]
    alone, shared = ([row for row in rows(folder) if "loss" in row] for folder in (whole, tmp_path / "two"))
    for one_row, two_row in zip(alone, shared, strict=True):
        assert 0.2 < one_row["budget_fill"] <= 1
        assert two_row["budget_fill"] == pytest.approx(one_row["budget_fill"])
        assert 0 <= two_row["padding_share"] == pytest.approx(one_row["padding_share"])
        assert one_row["cost_spread"] == 1
    assert max(row["cost_spread"] for row in shared) > 1
    assert drawn[0][-1]["tones"] % 16 == 0  # whole pools
    names = (whole / "checkpoints" / "step-000008" / "model.safetensors").stat().st_size
    assert names < 1_500_000  # the decoder is not in it


@pytest.mark.slow
def test_a_killed_run_is_not_finished_and_continues_with_the_same_losses(tone_run, tmp_path, whole):
    folder = tmp_path / "killed"
    overrides = [f"output_dir={folder}", "train.save_every=2"]
    process = forked_processes.start(command(tone_run, *overrides))
    while not (folder / "checkpoints" / "step-000004").is_dir():
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not any(row.get("event") == "finished" for row in rows(folder))
    run(tone_run, *overrides, "--resume")
    assert losses(folder) == losses(whole)
    assert ids(folder) == ids(whole)
    assert rows(folder)[-1]["event"] == "finished"


@pytest.mark.slow
def test_sigterm_saves_and_leaves_with_75(tone_run, tmp_path, whole):
    folder = tmp_path / "stopped"
    overrides = [f"output_dir={folder}"]
    process = forked_processes.start(command(tone_run, *overrides))
    while not (folder / "metrics.jsonl").is_file() or not losses(folder):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) in (75, 0)  # 0 when it was done before the signal came
    run(tone_run, *overrides, "--resume", "auto")
    assert losses(folder) == losses(whole)


@pytest.mark.slow
def test_mistakes_end_with_one_sentence_and_exit_code_2(tone_run, tmp_path, whole, capsys, fresh_accelerate):
    """The last one in a process of its own, the others in this one, which saves its start."""
    cases = {
        "already holds a run": [f"output_dir={whole}"],
        "holds no complete checkpoint": [f"output_dir={tmp_path / 'new'}", "--resume"],
        "unknown key (did you mean 'max_steps'?)": ["train.max_stepz=3"],
        "there is no folder /nothing": ["encoders.whisper.path=/nothing"],
    }
    for message, overrides in cases.items():
        if "/nothing" in message:
            error = run_from_the_shell(tone_run, *overrides, expect=2).stderr
        else:
            with pytest.raises(SystemExit) as left:
                main(["train", str(tone_run), *overrides])
            assert left.value.code == 2
            error = capsys.readouterr().err
        sentence = [line for line in error.splitlines() if line.startswith("uniaudio:")]
        assert len(sentence) == 1
        assert message in sentence[0]
        assert "Traceback" not in error


@pytest.mark.slow
def test_too_many_bad_clips_stop_the_run_and_are_listed(tone_run, tmp_path):
    for clip in sorted((tone_run.parent / "tones").glob("1*.wav")):
        clip.write_bytes(b"RIFF")
    error = run(tone_run, f"output_dir={tmp_path / 'bad'}", expect=2).stderr
    assert "tones lost" in error
    assert "broken audio" in error
    listed = [json.loads(line) for line in (tmp_path / "bad" / "skipped.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in listed} == {"broken audio"}
    assert all(row["row"].startswith("1") for row in listed)


@pytest.mark.slow
def test_micro_batches_must_fit_the_processes(tone_run):
    error = run(tone_run, "train.micro_batches=3", processes=2, expect=1).stderr
    assert "train.micro_batches is 3, but it must be a multiple of the 2 processes" in error


@pytest.fixture
def tar_run(tone_run):
    """The same run over three unequal tars."""
    folder = tone_run.parent
    lines = [json.loads(line) for line in (folder / "tones" / "manifest.jsonl").read_text().splitlines()]
    for part, rows_of_part in enumerate((lines[:5], lines[5:25], lines[25:])):
        with tarfile.open(folder / f"tones-{part}.tar", "w") as tar:
            for row in rows_of_part:
                stem = Path(row["audio"]).stem
                tar.add(folder / "tones" / row["audio"], f"{stem}.wav")
                (folder / "row.json").write_text(json.dumps(row))
                tar.add(folder / "row.json", f"{stem}.json")
    card = (folder / "tones.yaml").read_text().replace("jsonl: tones", "webdataset: 'tones-{0..2}.tar'")
    (folder / "tones.yaml").write_text(card)
    assert "webdataset" in card
    return tone_run


def kill_after(step, config, folder, *overrides, processes=1):
    """Start a run and kill all of it when the checkpoint of ``step`` is there."""
    log = folder.with_suffix(".log")
    process = forked_processes.start(command(config, *overrides), output=log, processes=processes)
    while not (folder / "checkpoints" / f"step-{step:06d}").is_dir():
        assert process.poll() is None, "the run ended before it could be killed: " + log.read_text()[-3000:]
        time.sleep(0.01)
    forked_processes.kill_all(process)


@pytest.mark.slow
def test_streamed_shards_killed_twice_on_changing_processes_and_workers(tar_run, tmp_path):
    run(tar_run, f"output_dir={tmp_path / 'plain'}", "data.window=6", "data.workers=0")
    folder = tmp_path / "killed"
    overrides = [f"output_dir={folder}", "data.window=6", "train.save_every=1"]
    kill_after(2, tar_run, folder, *overrides, "data.workers=2")
    kill_after(5, tar_run, folder, *overrides, "data.workers=1", "--resume", processes=2)
    run(tar_run, *overrides, "data.workers=3", "--resume")
    assert ids(folder) == ids(tmp_path / "plain")
    for step, loss in losses(tmp_path / "plain").items():
        assert losses(folder)[step] == pytest.approx(loss, rel=2e-4)
