"""Real processes that are stopped, killed, starved and held up: what is on disk is whole, and a run goes on from it."""

import contextlib
import functools
import json
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
from helpers import forked_processes
from helpers.run_folders import latest_checkpoint

from uniaudio.train.checkpoint.folders import is_complete
from uniaudio.train.checkpoint.reading import load_checkpoint

pytestmark = pytest.mark.slow


def command(config, *overrides):
    return ["-m", "uniaudio.train", str(config), *overrides]


def start(config, *overrides, processes=1, log=None):
    """Start a run in a session of its own; its words go to ``log``."""
    return forked_processes.start(command(config, *overrides), output=log, processes=processes)


def run(config, *overrides, processes=1, expect=0, prepare=None):
    done = forked_processes.run(
        command(config, *overrides), processes=processes, prepare=prepare, timeout=120
    )
    assert done.returncode == expect, done.stdout[-2000:] + done.stderr[-2000:]
    return done


def rows(folder):
    """Read the metrics; the last line may be half written."""
    path, result = Path(folder) / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            result.append(json.loads(line))
    return result


def losses(folder):
    return {row["step"]: row["loss"] for row in rows(folder) if "loss" in row}


def until(true, process, seconds=60):
    """Wait for a condition while a run goes on."""
    last = time.monotonic() + seconds
    while not true():
        assert process.poll() is None, "the run ended before"
        assert time.monotonic() < last, "it did not come about"
        time.sleep(0.005)


def children(pid):
    """Return the processes that a process started itself."""
    return [
        int(c)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for c in (task / "children").read_text().split()
    ]


@pytest.fixture
def long_run(tone_run):
    """The run with enough steps to be hit in the midst of them."""
    text = tone_run.read_text()
    assert "steps: 8" in text
    tone_run.write_text(text.replace("steps: 8", "steps: 60"))
    return tone_run


TWO = "stages.0.steps=30"  # two processes are slower
WHOLE: dict[int, float] = {}  # losses of an uninterrupted run of two processes


@pytest.fixture
def whole_of_two(long_run, tmp_path):
    """Return the losses of an uninterrupted run of two processes; it is done once for all tests."""
    if not WHOLE:
        run(long_run, f"output_dir={tmp_path / 'whole'}", TWO, processes=2)
        WHOLE.update(losses(tmp_path / "whole"))
    assert WHOLE.keys() == set(range(1, 31))
    return WHOLE


def test_sigterm_to_the_launcher_saves_and_the_resume_gives_the_losses_of_an_uninterrupted_run(
    long_run, tmp_path, whole_of_two
):
    folder, log = tmp_path / "stopped", tmp_path / "log"
    overrides = [f"output_dir={folder}", TWO, "data.workers=1", "train.save_every=1000"]
    process = start(long_run, *overrides, processes=2, log=log)
    try:
        until(lambda: len(losses(folder)) >= 3, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0, log.read_text()[-2000:]
    finally:
        forked_processes.kill_all(process)
    [stopped] = [row for row in rows(folder) if row.get("event") == "stopped"]
    assert 3 <= stopped["step"] < 30
    path = latest_checkpoint(folder)
    assert load_checkpoint(path).state["step"] == stopped["step"] == max(losses(folder))
    assert len(list(path.glob("optimizer-*-of-00002.safetensors"))) == 2
    run(long_run, *overrides, "--resume", processes=2)
    assert losses(folder) == whole_of_two


def test_a_process_that_dies_ends_the_launch_and_the_resume_gives_the_same_losses(
    long_run, tmp_path, whole_of_two
):
    folder, log = tmp_path / "killed", tmp_path / "log"
    overrides = [f"output_dir={folder}", TWO, "train.save_every=2"]
    process = start(long_run, *overrides, processes=2, log=log)
    try:
        until(lambda: latest_checkpoint(folder), process)
        both = forked_processes.find_ranks(process)
        assert both.keys() == {0, 1}
        os.kill(both[1], signal.SIGKILL)
        struck = time.monotonic()
        code = process.wait(60)
        assert code != 0
        assert time.monotonic() - struck < 60
        assert not Path(f"/proc/{both[0]}").exists()
        words = log.read_text()
        assert "process 0 lost another process of its run" in words
        assert "Signal 15" not in words  # the launcher did not end it before it had said so
        assert not (folder / "run.lock").exists()
    finally:
        forked_processes.kill_all(process)
    assert "finished" not in {row.get("event") for row in rows(folder)}
    assert is_complete(latest_checkpoint(folder))
    run(long_run, *overrides, "--resume", processes=2)
    assert losses(folder) == whole_of_two


def test_a_process_that_hangs_is_reported_by_the_stacks_of_the_others(long_run, tmp_path):
    folder, log = tmp_path / "held", tmp_path / "log"
    process = start(
        long_run, f"output_dir={folder}", "train.hang_seconds=3", "stages.0.steps=1000", processes=2, log=log
    )
    stacks = folder / "stacks-rank0.txt"
    try:
        until(lambda: len(losses(folder)) >= 3, process)
        both = forked_processes.find_ranks(process)
        known = stacks.read_text() if stacks.is_file() else ""  # of a slow start
        os.kill(both[1], signal.SIGSTOP)
        until(lambda: stacks.is_file() and len(stacks.read_text()) > len(known) + 200, process, 30)
        time.sleep(0.3)
        written = stacks.read_text().removeprefix(known)
        done = max(losses(folder))
        os.kill(both[1], signal.SIGCONT)
        until(lambda: max(losses(folder)) >= done + 3, process)
    finally:
        forked_processes.kill_all(process)
    sentence = f"process 0: no step finished in 3 s (train.hang_seconds); its stacks are in {stacks}"
    assert sentence in log.read_text()
    assert "loop.py" in written
    assert " in train_to_end" in written  # where the loop stands
    assert any(
        f" in {name}" in written for name in ("all_reduce", "all_gather_object", "backward", "barrier")
    )


def test_a_second_launch_is_refused_and_ranks_without_their_launcher_end_themselves(long_run, tmp_path):
    folder, log = tmp_path / "orphaned", tmp_path / "log"
    overrides = [f"output_dir={folder}", TWO, "train.save_every=2", "data.workers=1"]
    process = start(long_run, *overrides, processes=2, log=log)
    try:
        until(lambda: latest_checkpoint(folder), process)
        both = forked_processes.find_ranks(process)
        os.kill(both[0], signal.SIGSTOP)  # it stays in the midst of its run
        error = run(long_run, *overrides, "--resume", "auto", processes=2, expect=1).stderr
        sentences = [line for line in error.splitlines() if line.startswith("uniaudio:")]
        assert len(sentences) == 2  # both ranks say it
        assert all(f"is in use by another run, process {both[0]} on " in line for line in sentences)
        os.kill(both[0], signal.SIGCONT)
        everybody = [*both.values(), *(child for rank in both.values() for child in children(rank))]
        assert len(everybody) >= 4  # two ranks, two data workers
        process.kill()
        process.wait()
        struck = time.monotonic()
        while any(is_alive(pid) for pid in everybody):
            assert time.monotonic() - struck < 30, "they live on"
            time.sleep(0.05)
    finally:
        for pid in ranks_alive(both):
            os.kill(pid, signal.SIGKILL)
        forked_processes.kill_all(process)
    assert "ends: the process that started it is gone" in log.read_text()
    assert is_complete(latest_checkpoint(folder))
    assert load_checkpoint(latest_checkpoint(folder)).state["step"] >= 2


def is_alive(pid):
    """Return whether a process runs; one that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ranks_alive(by_rank):
    return [pid for pid in by_rank.values() if is_alive(pid)]


def test_a_full_disk_ends_a_run_with_one_sentence_and_leaves_the_earlier_checkpoint(tone_run, tmp_path):
    folder = tmp_path / "full"
    overrides = [f"output_dir={folder}", "train.save_every=1"]
    run(tone_run, *overrides, "train.max_steps=2")
    first = latest_checkpoint(folder)
    before = {p.name: p.read_bytes() for p in first.iterdir()}
    limit = 100_000
    assert (first / "model.safetensors").stat().st_size > limit
    assert (folder / "metrics.jsonl").stat().st_size < limit / 10
    small = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    error = run(tone_run, *overrides, "--resume", expect=2, prepare=small).stderr
    sentences = [line for line in error.splitlines() if line.startswith("uniaudio:")]
    assert len(sentences) == 1
    assert "step-000003 could not be written" in sentences[0]
    assert "File too large" in sentences[0]
    assert "Traceback" not in error
    assert latest_checkpoint(folder) == first
    assert {p.name: p.read_bytes() for p in first.iterdir()} == before
    assert not list(first.parent.glob(".unfinished-step*"))
    assert load_checkpoint(first).state["step"] == 2


def test_sigterm_to_a_single_process_leaves_with_75_and_kills_at_random_moments_lose_nothing(
    long_run, tmp_path
):
    run(long_run, f"output_dir={tmp_path / 'whole'}")
    folder = tmp_path / "killed"
    overrides = [f"output_dir={folder}", "train.save_every=1", "--resume", "auto"]
    draw, reached, log = random.Random(0), [0], tmp_path / "log"

    def further():
        path = latest_checkpoint(folder)
        return path is not None and int(path.name.removeprefix("step-")) > reached[-1]

    for attempt in range(5):
        process = start(long_run, *overrides, log=log)
        if attempt == 2:  # two in a row: this one is killed wherever its start has come to
            time.sleep(draw.uniform(0, 0.5))
            forked_processes.kill_all(process)
            process = start(long_run, *overrides, log=log)
        try:
            until(further, process)
            time.sleep(draw.uniform(0, 0.08))
            assert process.poll() is None, "the run ended before it could be killed"
        finally:
            forked_processes.kill_all(process)
        path = latest_checkpoint(folder)
        assert is_complete(path)
        state = load_checkpoint(path).state
        assert path.name == f"step-{state['step']:06d}"
        assert reached[-1] < state["step"] < 60
        reached.append(state["step"])
    assert "finished" not in {row.get("event") for row in rows(folder)}
    process = start(long_run, *overrides)
    until(further, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    assert [row["step"] for row in rows(folder) if row.get("event") == "stopped"][-1] < 60
    run(long_run, *overrides)
    taken_over = [line for line in log.read_text().splitlines() if "taken over from process" in line]
    assert len(taken_over) >= 4  # every kill but the last left its lock
    assert not (folder / "run.lock").exists()
    assert losses(folder) == losses(tmp_path / "whole")
    assert losses(folder).keys() == set(range(1, 61))
    assert rows(folder)[-1] == {"event": "finished", "step": 60}
