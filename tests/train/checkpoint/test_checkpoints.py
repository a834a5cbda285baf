"""Checkpoints: what is written is read, and whatever happens while it is written, the newest one on disk is whole."""

import contextlib
import inspect
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import threading
import time
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.run_folders import latest_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.distributed.elastic.multiprocessing import PContext

from uniaudio.commands.train import run_training
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.train.checkpoint import background_writer
from uniaudio.train.checkpoint import writing as module
from uniaudio.train.checkpoint.background_writer import CheckpointWriter, HostCopies
from uniaudio.train.checkpoint.folders import (
    find_stage_ends,
    is_complete,
    name_step_folder,
    name_unfinished_folder,
)
from uniaudio.train.checkpoint.integrity import FileRecord
from uniaudio.train.checkpoint.reading import MomentFiles, check_bases, load_checkpoint
from uniaudio.train.checkpoint.writing import (
    Snapshot,
    begin_checkpoint,
    distribute_tensors,
    finish_checkpoint,
    name_mark,
    save_checkpoint,
    verify_tensors,
    write_share,
)
from uniaudio.train.engines.base import Engine

BASES = {"decoder": {"path": "a", "sha256": "1" * 64}}
FILES = {
    "model.safetensors",
    "ema.safetensors",
    "optimizer-00000-of-00001.safetensors",
    "state.json",
    "bases.json",
    "config.yaml",
    "complete.json",
}


def snapshot(step, value=None, end=False, size=3, stage=0):
    """Every number of it is ``value``, so that a mixture of two of them shows."""
    value = float(step if value is None else value)
    state = {"stage": stage, "stage_step": step, "stream": None, "value": value, "stage_done": end}
    full = torch.full((size,), value)
    moments = {"w|exp_avg": full.clone(), "w|exp_avg_sq": full.clone()}
    return Snapshot(step, state, moments, {"w": full}, {"w": full.clone()})


def value_of(path):
    """Read all of a checkpoint and return the one number that it consists of."""
    loaded, averages, moments = load_checkpoint(path), load_checkpoint(path, ema=True), MomentFiles(path)
    tensors = [
        loaded.model["w"],
        averages.model["w"],
        *(moments.get("w", m) for m in ("exp_avg", "exp_avg_sq")),
    ]
    result = {value for tensor in tensors for value in tensor.tolist()} | {loaded.state["value"]}
    assert len(result) == 1
    return result.pop()


@pytest.fixture
def config(tone_run):
    return load_run(tone_run)


@pytest.fixture
def save(config, tmp_path):
    def run(step, **how):
        return save_checkpoint(tmp_path / "run", snapshot(step, **how), config, BASES)

    return run


def names(folder):
    return sorted(p.name for p in folder.glob("step-*"))


def left_over(run_dir):
    return [p.name for p in (run_dir / "checkpoints").glob(".unfinished-step-*")]


def test_what_is_saved_is_read(save, tmp_path):
    path = save(5)
    checkpoint = load_checkpoint(path)
    assert path.name == "step-000005"
    assert latest_checkpoint(tmp_path / "run") == path
    assert torch.equal(checkpoint.model["w"], torch.full((3,), 5.0))
    assert torch.equal(MomentFiles(path).get("w", "exp_avg_sq"), torch.full((3,), 5.0))
    assert checkpoint.state["step"] == 5
    assert (path.parent / "latest").read_text().strip() == "step-000005"
    assert {p.name for p in path.iterdir()} == FILES
    assert json.loads((path / "complete.json").read_text()).keys() == FILES - {"complete.json"}


def test_what_was_not_saved_is_reported(save, config, tmp_path):
    path = save(5)
    with pytest.raises(UserError, match=r"step-000005 contains no exp_avg of v; start a new run"):
        MomentFiles(path).get("v", "exp_avg")
    bare = Snapshot(6, {"stage": 0}, {}, {"w": torch.zeros(1)})
    with pytest.raises(UserError, match=r"step-000006 contains no moving averages"):
        load_checkpoint(save_checkpoint(tmp_path / "run", bare, config, BASES), ema=True)


def test_only_the_last_ones_are_kept(save):
    for step in (1, 2, 3, 4):
        path = save(step)
    assert names(path.parent) == ["step-000003", "step-000004"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "without a listing"])
def test_a_damaged_checkpoint_is_none_of_those_that_are_kept(save, damage):
    for step in (1, 2):
        path = save(step)
    weights = path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    if damage == "without a listing":
        (path / "complete.json").unlink()
    else:
        weights.write_bytes(content if damage == "flipped" else content[:-1])
    save(3)
    assert names(path.parent) == ["step-000001", "step-000002", "step-000003"]  # two of them are whole
    save(4)
    assert names(path.parent) == ["step-000003", "step-000004"]


def test_damaged_ends_of_stages_are_named(tone_run, tmp_path):
    config = load_run(tone_run)
    run = tmp_path / "run"
    first, middle, second = (
        save_checkpoint(run, snapshot(step, end=step != 2, stage=step // 3), config, BASES)
        for step in (1, 2, 3)
    )
    assert find_stage_ends(run, None) == ({0: first, 1: second}, [])
    with (middle / "ema.safetensors").open("r+b") as averages:  # no end of a stage, as its state says
        averages.write(b"x")
    with (second / "model.safetensors").open("r+b") as weights:
        weights.write(b"x")
    (first / "state.json").write_bytes(b"\0" * (first / "state.json").stat().st_size)
    ends, complaints = find_stage_ends(run, None)
    assert ends == {}
    assert [sentence.split(" (")[0] for sentence in complaints] == [
        f"checkpoint {path} is damaged" for path in (first, second)
    ]
    assert "state.json does not match its checksum) and skipped" in complaints[0]
    assert find_stage_ends(run, ("state.json",))[0] == {1: second}  # its state can be read


def test_every_so_many_steps_and_the_ends_of_stages_are_kept_too(tone_run, tmp_path):
    config = load_run(tone_run, ["train.keep_every=4", "train.keep_last=1"])
    for step in range(1, 11):
        path = save_checkpoint(tmp_path / "run", snapshot(step, end=step == 3), config, BASES)
    assert names(path.parent) == ["step-000003", "step-000004", "step-000008", "step-000010"]
    assert find_stage_ends(tmp_path / "run")[0] == {0: path.with_name("step-000003")}


def test_an_old_checkpoint_that_cannot_be_removed_is_no_failure_of_the_new_one(save, monkeypatch):
    """On NFS a file that somebody reads keeps its folder from being removed."""

    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise OSError(39, "Directory not empty")

    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        for step in (1, 2, 3, 4):
            path = save(step)
    assert names(path.parent) == [f"step-00000{step}" for step in (1, 2, 3, 4)]
    path = save(5)
    assert names(path.parent) == ["step-000004", "step-000005"]


def test_a_run_taken_up_further_back_keeps_its_new_checkpoint(save):
    for step in (8, 9, 3):
        path = save(step)
    assert names(path.parent) == ["step-000003", "step-000008", "step-000009"]
    assert latest_checkpoint(path.parent.parent) == path


def test_steps_are_sorted_by_number_and_other_folders_left_alone(save, tmp_path):
    (tmp_path / "run" / "checkpoints" / "step-000001-kept").mkdir(parents=True)
    for step in (999_999, 1_000_000, 1_000_001):
        path = save(step)
    assert names(path.parent) == ["step-000001-kept", "step-1000000", "step-1000001"]
    (path.parent / "latest").unlink()
    assert latest_checkpoint(tmp_path / "run") == path


@pytest.mark.parametrize("named", ["{other}", "../../other/checkpoints/step-000009", "..", "", b"\xff\xfe"])
def test_latest_leads_to_no_folder_outside_of_its_run(save, config, tmp_path, named):
    other = save_checkpoint(tmp_path / "other", snapshot(9), config, BASES)
    path = save(1)
    text = named if isinstance(named, bytes) else named.format(other=other).encode()
    (path.parent / "latest").write_bytes(text)
    assert latest_checkpoint(tmp_path / "run") == path


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_cut_checkpoint_is_never_taken_for_a_whole_one(save, tmp_path, name):
    first, second = save(1), save(2)
    os.truncate(second / name, (second / name).stat().st_size - 1)
    assert not is_complete(second)
    assert latest_checkpoint(tmp_path / "run") == first
    with pytest.raises(UserError, match="is not a complete checkpoint"):
        load_checkpoint(second)
    (second / name).unlink()
    assert not is_complete(second)


def test_unfinished_folders_are_ignored_and_removed(save, tmp_path):
    first = save(1)
    unfinished = first.with_name(".unfinished-step-000002")
    unfinished.mkdir()
    (unfinished / "model.safetensors").touch()
    assert latest_checkpoint(tmp_path / "run") == first
    save(3)
    assert not unfinished.exists()


def test_another_decoder_is_refused_by_name(save):
    checkpoint = load_checkpoint(save(1))
    check_bases(checkpoint, {"decoder": {"path": "elsewhere", "sha256": "1" * 64}})
    with pytest.raises(
        UserError, match=r"trained with the decoder a \(111111111111\), but the config names b \(222"
    ):
        check_bases(checkpoint, {"decoder": {"path": "b", "sha256": "2" * 64}})


def test_files_beside_the_weights_are_compared_where_the_checkpoint_has_their_hash(save):
    """One of an earlier version has none."""
    checkpoint = load_checkpoint(save(1))
    now = {**BASES["decoder"], "files_sha256": "3" * 64}
    check_bases(checkpoint, {"decoder": now})
    checkpoint.bases["decoder"] = now
    check_bases(checkpoint, {"decoder": {**now, "path": "elsewhere"}})
    with pytest.raises(
        UserError,
        match=r"step-000001 was trained with other files of the decoder b: .*; restore the folder, or",
    ):
        check_bases(checkpoint, {"decoder": {**now, "path": "b", "files_sha256": "4" * 64}})


def test_a_disk_that_refuses_leaves_the_previous_one(save, tmp_path, monkeypatch):
    first = save(1)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("uniaudio.train.checkpoint.writing.save_file", full)
    with pytest.raises(UserError, match=r"could not be written .*No space left"):
        save(2)
    assert latest_checkpoint(tmp_path / "run") == first
    assert not list(first.parent.glob(".unfinished-*step*"))


def test_pickles_are_not_executed(save):
    path = save(1)

    class Evil:
        def __reduce__(self):
            return (path.parent / "executed").touch, ()

    pickle.loads(pickle.dumps(Evil()))
    assert (path.parent / "executed").exists()  # this is what must not happen
    (path.parent / "executed").unlink()
    for name in ("optimizer.pt", "model.safetensors", "optimizer-00000-of-00001.safetensors"):
        torch.save({"state": Evil()}, path / name)
        sizes = json.loads((path / "complete.json").read_text())
        sizes[name] = FileRecord.of(path / name).to_json()
        (path / "complete.json").write_text(json.dumps(sizes))
        with (
            contextlib.nullcontext()
            if name == "optimizer.pt"
            else pytest.raises(UserError, match="cannot be read")
        ):
            load_checkpoint(path)
            MomentFiles(path)
    assert not (path.parent / "executed").exists()


# ------------------------------------------------------------------------------------------ killed while writing


def in_child(work):
    """Run in a process of its own; return the signal that killed it, or None. What it raises fails the test.

    Large tensors are made before: torch's threads do not live on in the child.
    """
    child = os.fork()
    if child == 0:
        code = 1
        signal.alarm(30)
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status)
    assert os.WEXITSTATUS(status) == 0
    return None


def watched(reached, torn):
    """Let all that touches the disk call ``reached(name)`` first; ``torn``: what writes a file, after half of it."""

    def before(name, real):
        def call(*given, **named):
            reached(name)
            return real(*given, **named)

        return call

    real_save, real_text = module.save_file, Path.write_text

    def save_half(tensors, path):
        real_save(tensors, path)
        os.truncate(path, path.stat().st_size // 2)
        reached("save_file")
        real_save(tensors, path)

    def write_half(self, text, **named):
        real_text(self, text[: len(text) // 2], **named)
        reached("write_text")
        return real_text(self, text, **named)

    if torn:
        module.save_file, Path.write_text = save_half, write_half
        return
    module.save_file = before("save_file", real_save)
    Path.write_text = before("write_text", real_text)
    for name in ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, before(name, getattr(os, name)))


def operations(work, log, torn):
    """Return the names of the operations of ``work``, in order."""

    def note(name):
        with log.open("a") as stream:
            stream.write(name + "\n")

    def noted():
        watched(note, torn)
        work()

    assert in_child(noted) is None
    return log.read_text().split()


def killed_at(count, work, torn):
    """Let a child do ``work`` and kill itself at the ``count``-th operation."""
    seen = []

    def strike(name):
        seen.append(name)
        if len(seen) == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def struck():
        watched(strike, torn)
        work()

    assert in_child(struck) == signal.SIGKILL


@pytest.mark.parametrize("torn", [False, True], ids=["between", "within"])
@pytest.mark.parametrize("step", [1, 2], ids=["same step again", "next step"])
def test_a_kill_at_any_point_leaves_a_whole_checkpoint_and_the_next_save_works(
    tone_run, tmp_path, step, torn
):
    config = load_run(tone_run, ["train.keep_last=1"])  # the step before goes while the new one is written
    before = tmp_path / "before"
    save_checkpoint(before, snapshot(1, value=10), config, BASES)

    def work(run_dir):
        return lambda: save_checkpoint(run_dir, snapshot(step, value=20), config, BASES)

    shutil.copytree(before, tmp_path / "rehearsal")
    order = operations(work(tmp_path / "rehearsal"), tmp_path / "log", torn)
    if torn:  # model, averages and moments; mark, state, bases, config, complete and latest
        assert (order.count("save_file"), order.count("write_text")) == (3, 6)
    else:
        assert order.count("fsync") == 3 + 4 + 2 + 1  # tensors, the rest, two folders, latest
        assert order.count("rename") == (2 if step == 1 else 1)
        assert order.count("replace") == 1
        assert order.index("rename") < order.index("replace") < order.index("rmdir")  # prune comes last
    result = []
    for count in range(1, len(order) + 1):
        run_dir = tmp_path / f"killed-{count}"
        shutil.copytree(before, run_dir)
        killed_at(count, work(run_dir), torn)
        path = latest_checkpoint(run_dir)
        assert path is not None, (count, order[:count])
        assert is_complete(path)
        result.append(value_of(path))
        for next_step in (1, 3)[step - 1 :]:
            path = save_checkpoint(run_dir, snapshot(next_step, value=30 + next_step), config, BASES)
            assert latest_checkpoint(run_dir) == path
            assert value_of(path) == 30 + next_step
        assert names(path.parent) == ["step-000003"]
        assert not left_over(run_dir)
    assert set(result) == ({10.0} if torn and step == 2 else {10.0, 20.0})
    assert result == sorted(result)  # once the new one is taken, it stays


def test_two_kills_between_the_moves_of_the_same_step_do_not_lose_it(tone_run, tmp_path):
    config, run_dir = load_run(tone_run), tmp_path / "run"
    save_checkpoint(run_dir, snapshot(1, value=10), config, BASES)
    for _ in range(2):
        seen = []

        def strike(name, seen=seen):
            seen.extend([name] * (name == "rename"))
            if len(seen) == 2:  # the old folder is away, the new one not there yet
                os.kill(os.getpid(), signal.SIGKILL)

        def work(strike=strike):
            begin_checkpoint(run_dir, 1)  # brings the old one back, if it is away
            watched(strike, False)
            write_share(run_dir, snapshot(1, value=20), 0, 1)
            finish_checkpoint(run_dir, snapshot(1, value=20), 1, config, BASES)

        assert in_child(work) == signal.SIGKILL
        assert not name_step_folder(run_dir, 1).exists()
        assert value_of(latest_checkpoint(run_dir)) == 10


# ---------------------------------------------------------------------------------------------------- two ranks


def share(rank, step=2):
    """One rank's part of a checkpoint of two: the moments of one parameter each, the rest on the main rank."""
    whole = snapshot(step)
    moments = {
        f"{'wv'[rank]}|exp_avg": torch.full((3,), float(step)),
        f"{'wv'[rank]}|exp_avg_sq": torch.ones(3),
    }
    return Snapshot(step, whole.state, moments, whole.model if rank == 0 else {})


def test_two_processes_write_one_checkpoint(config, save, tmp_path):
    save(1)
    run_dir = tmp_path / "run"
    begin_checkpoint(run_dir, 2)
    threads = [threading.Thread(target=write_share, args=(run_dir, share(rank), rank, 2)) for rank in (0, 1)]
    threads[0].start()
    waiting = threading.Thread(target=finish_checkpoint, args=(run_dir, share(0), 2, config, BASES))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    assert latest_checkpoint(run_dir).name == "step-000001"  # half of it is none of it
    threads[1].start()
    for thread in (*threads, waiting):
        thread.join(20)
    path = latest_checkpoint(run_dir)
    assert path.name == "step-000002"
    assert {p.name for p in path.glob("optimizer*")} == {
        "optimizer-00000-of-00002.safetensors",
        "optimizer-00001-of-00002.safetensors",
    }
    moments = MomentFiles(path)
    assert [moments.get(name, "exp_avg").tolist() for name in "wv"] == [[2.0] * 3] * 2
    assert not list(path.glob(".written*"))


@pytest.mark.parametrize("failing", [0, 1])
def test_a_process_that_cannot_write_its_part_is_named_and_the_previous_one_stays(
    config, save, tmp_path, failing
):
    first, run_dir = save(1), tmp_path / "run"
    begin_checkpoint(run_dir, 2)
    write_share(run_dir, share(1 - failing), 1 - failing, 2)

    def refused():
        resource.setrlimit(resource.RLIMIT_FSIZE, (120, 120))  # enough for the mark that tells of it
        with pytest.raises(UserError, match=r"step-000002 could not be written .*File too large"):
            write_share(run_dir, share(failing), failing, 2)

    assert in_child(refused) is None
    with pytest.raises(
        UserError, match=rf"step-000002 could not .*\(process {failing}: .*File too large.*intact"
    ):
        finish_checkpoint(run_dir, share(0), 2, config, BASES)
    assert latest_checkpoint(run_dir) == first
    assert value_of(first) == 1
    assert not left_over(run_dir)
    assert value_of(save(3)) == 3


def test_a_process_that_cannot_even_leave_a_mark_is_noticed(config, save, tmp_path):
    first, run_dir = save(1), tmp_path / "run"
    begin_checkpoint(run_dir, 2)
    write_share(run_dir, share(0), 0, 2)

    def refused():
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # a mark can be made, but stays empty
        with pytest.raises(UserError, match="could not be written"):
            write_share(run_dir, share(1), 1, 2)

    assert in_child(refused) is None
    with pytest.raises(UserError, match=r"part of process \d could not be written"):
        finish_checkpoint(run_dir, share(0), 2, config, BASES)
    assert latest_checkpoint(run_dir) == first


def test_a_killed_process_is_not_waited_for_without_end(config, save, tmp_path):
    first, run_dir = save(1), tmp_path / "run"
    begin_checkpoint(run_dir, 2)
    write_share(run_dir, share(0), 0, 2)

    def struck():
        watched(lambda name: os.kill(os.getpid(), signal.SIGKILL), torn=True)
        write_share(run_dir, share(1), 1, 2)

    assert in_child(struck) == signal.SIGKILL
    with pytest.raises(UserError, match=r"process 1 did not write its part within 0\.3 s"):
        finish_checkpoint(run_dir, share(0), 2, config, BASES, patience=0.3)
    assert latest_checkpoint(run_dir) == first


def test_a_mark_that_is_only_being_written_does_not_count(config, save, tmp_path):
    first, run_dir = save(1), tmp_path / "run"
    begin_checkpoint(run_dir, 2)
    write_share(run_dir, share(0), 0, 2)
    name_mark(name_unfinished_folder(name_step_folder(run_dir, 2)), 1).touch()
    with pytest.raises(UserError, match="process 1 did not write its part"):
        finish_checkpoint(run_dir, share(0), 2, config, BASES, patience=0.2)
    assert latest_checkpoint(run_dir) == first


# ------------------------------------------------------------------------------------------------ a refusing disk


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_runs_full_at_any_point_leaves_the_previous_one(config, small_disk):
    filler = small_disk / "filler"
    save_checkpoint(small_disk, snapshot(1), config, BASES)
    outcomes = []
    for pages in range(24):
        shutil.rmtree(name_step_folder(small_disk, 2), ignore_errors=True)
        (small_disk / "checkpoints" / "latest").write_text("step-000001\n")
        free = shutil.disk_usage(small_disk).free
        filler.write_bytes(b"x" * (free - pages * 4096))
        message = None
        try:
            save_checkpoint(small_disk, snapshot(2, size=2000), config, BASES)
        except UserError as refusal:
            message = str(refusal)
            assert "step-000002 could not be written" in message
            assert "earlier ones are intact" in message
        path = latest_checkpoint(small_disk)
        assert value_of(path) == (1 if message else 2)
        assert value_of(name_step_folder(small_disk, 1)) == 1
        assert not left_over(small_disk)
        outcomes.append(message is None)
        filler.unlink()
    assert outcomes == sorted(outcomes)
    assert 8 < outcomes.count(False) < 20  # of 8 kB per tensor file, and one page for every small one
    with pytest.raises(UserError, match="intact"):
        save_checkpoint(small_disk, snapshot(2, size=100_000), config, BASES)
    assert value_of(save_checkpoint(small_disk, snapshot(3), config, BASES)) == 3


def test_a_file_size_limit_leaves_the_previous_one(config, save, tmp_path):
    first, large = save(1), snapshot(2, size=100_000)

    def refused():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(UserError, match=r"step-000002 could not be written .*File too large.*intact"):
            save_checkpoint(tmp_path / "run", large, config, BASES)

    assert in_child(refused) is None
    assert latest_checkpoint(tmp_path / "run") == first
    assert value_of(first) == 1
    assert not left_over(tmp_path / "run")


def test_a_folder_that_cannot_be_made_is_reported(config, save, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file in its place")
    with pytest.raises(UserError, match=r"checkpoints/step-000001 could not be written \(.*; earlier"):
        save(1)


def test_a_folder_without_permission_is_reported(save, tmp_path):
    first = save(1)
    first.parent.chmod(0o555)

    def refused():
        if os.getuid() == 0:
            os.setuid(65534)
        with pytest.raises(UserError, match=r"could not be written .*Permission denied"):
            save(2)

    try:
        assert in_child(refused) is None
    finally:
        first.parent.chmod(0o755)
    assert latest_checkpoint(tmp_path / "run") == first


@pytest.mark.parametrize(
    "wrong",
    [
        {"w": torch.zeros(4)},
        {"v": torch.zeros(3)},
        {"w": torch.zeros(3), "v": torch.zeros(3)},
        {},
    ],
    ids=["shape", "name", "more", "less"],
)
def test_a_file_with_other_tensors_than_were_to_be_written_is_refused(save, tmp_path, monkeypatch, wrong):
    first = save(1)
    verify_tensors(first / "model.safetensors", {"w": torch.zeros(3)})
    with pytest.raises(OSError, match="does not contain what was written"):
        verify_tensors(first / "model.safetensors", wrong)
    real = module.save_file
    monkeypatch.setattr(module, "save_file", lambda tensors, path: real(wrong, path))
    with pytest.raises(UserError, match="does not contain what was written"):
        save(2)
    assert latest_checkpoint(tmp_path / "run") == first


def test_a_file_cut_short_by_the_disk_is_refused(save, tmp_path, monkeypatch):
    first, real = save(1), module.save_file

    def cut(tensors, path):
        real(tensors, path)
        os.truncate(path, path.stat().st_size - 1)

    monkeypatch.setattr(module, "save_file", cut)
    with pytest.raises(UserError, match="step-000002 could not be written"):
        save(2)
    assert latest_checkpoint(tmp_path / "run") == first


# ------------------------------------------------------------------------------------------------------- sharing


SIZES = st.dictionaries(st.text("abc.", min_size=1, max_size=4), st.integers(0, 10_000), max_size=40)


@given(SIZES, st.integers(1, 9), st.randoms(use_true_random=False))
def test_shares_are_complete_balanced_and_the_same_on_every_rank(sizes, world, random):
    shares = distribute_tensors(sizes, world)
    assert len(shares) == world
    assert sorted(name for share in shares for name in share) == sorted(sizes)
    loads = [sum(sizes[name] for name in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)
    shuffled = list(sizes.items())
    random.shuffle(shuffled)
    assert distribute_tensors(dict(shuffled), world) == shares


# ------------------------------------------------------------------------------------------------- in the background


@pytest.fixture
def engine():
    torch.manual_seed(0)
    plain = nn.Linear(4, 3)
    engine = Engine(plain, torch.optim.AdamW(plain.parameters(), lr=0.1), None)
    update(engine)
    return engine


def update(engine):
    engine.backward(engine.forward(torch.ones(2, 4)).square().sum())
    engine.step(1.0)


def state(step):
    return {"stage": 0, "stage_step": step}


def test_the_background_writes_what_was_there_at_the_call(engine, config, tmp_path, monkeypatch):
    message, go = [], threading.Event()
    real = module.save_file
    monkeypatch.setattr(module, "save_file", lambda tensors, path: go.wait(20) and real(tensors, path))
    writer = CheckpointWriter(
        tmp_path / "run", config, BASES, lambda step, facts: message.append((step, facts))
    )
    expected = engine.plain.weight.detach().clone()
    moment = engine.optimizer.state[engine.plain.weight]["exp_avg"].clone()
    writer.save(engine, {"carried": torch.ones(2)}, {"weight": expected + 1}, 1, state(1), {"a": 1})
    writer.wait_for_copies()
    update(engine)  # training goes on
    assert not torch.equal(engine.plain.weight, expected)
    writer.tell()
    assert message == []
    assert latest_checkpoint(tmp_path / "run") is None
    go.set()
    writer.wait()
    assert message == [(1, {"a": 1})]
    path = latest_checkpoint(tmp_path / "run")
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.model["weight"], expected)
    assert torch.equal(loaded.model["carried"], torch.ones(2))
    assert torch.equal(load_checkpoint(path, ema=True).model["weight"], expected + 1)
    assert torch.equal(MomentFiles(path).get("weight", "exp_avg"), moment)


def test_a_save_waits_for_the_one_before(engine, config, tmp_path):
    message = []
    writer = CheckpointWriter(tmp_path / "run", config, BASES, lambda step, facts: message.append(step))
    weights = {}
    for step in (1, 2, 3):
        writer.wait_for_copies()
        update(engine)
        weights[step] = engine.plain.weight.detach().clone()
        writer.save(engine, {}, {}, step, state(step), {})
        assert message == list(range(1, step))
    writer.wait()
    assert message == [1, 2, 3]
    for step in (2, 3):  # the copies share their place in memory, one after another
        assert torch.equal(
            load_checkpoint(name_step_folder(tmp_path / "run", step)).model["weight"], weights[step]
        )


@pytest.mark.parametrize(
    "problem", [OSError(28, "No space left on device"), MemoryError(), TypeError("no JSON")]
)
def test_what_fails_in_the_background_is_reported_whatever_it_is(
    engine, config, tmp_path, monkeypatch, problem
):
    writer = CheckpointWriter(tmp_path / "run", config, BASES)
    writer.save(engine, {}, {}, 1, state(1), {})
    writer.wait()
    first = latest_checkpoint(tmp_path / "run")

    def fail(*_):
        raise problem

    monkeypatch.setattr(module, "point_latest" if isinstance(problem, TypeError) else "save_file", fail)
    writer.save(engine, {}, {}, 2, state(2), {})
    with pytest.raises(
        UserError, match=r"step-000002 could not be written \(.*(No space|MemoryError|no JSON)"
    ):
        writer.wait()
    assert writer.failed
    assert is_complete(first)
    assert load_checkpoint(latest_checkpoint(tmp_path / "run")).state["step"] == 1


@pytest.mark.parametrize("failing", ["copy", "save_file"])
def test_a_process_without_memory_for_its_part_tells_the_main_one(
    engine, config, tmp_path, monkeypatch, failing
):
    """The main one would else wait for the part, and give the wait as the reason."""
    run_dir = tmp_path / "run"
    begin_checkpoint(run_dir, 2)
    write_share(run_dir, share(0), 0, 2)

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(*((HostCopies, "copy") if failing == "copy" else (module, "save_file")), fail)
    monkeypatch.setattr(background_writer, "world_size", lambda: 2)
    monkeypatch.setattr(background_writer, "rank", lambda: 1)
    monkeypatch.setattr(background_writer, "gather_objects", lambda value: [None, value])
    writer = CheckpointWriter(run_dir, config, BASES)
    writer.save(engine, {}, {}, 2, state(2), {})
    with pytest.raises(UserError, match=r"step-000002 could not be written \(MemoryError"):
        writer.wait()
    with pytest.raises(UserError, match=r"step-000002 could not be written \(process 1: MemoryError\)"):
        finish_checkpoint(run_dir, share(0), 2, config, BASES, patience=5)


@pytest.mark.parametrize(("processes", "seconds"), [(1, 60), (2, 20)])
def test_a_rank_says_why_it_ends_before_torchrun_kills_it(config, tmp_path, monkeypatch, processes, seconds):
    """It does not wait that long for the part of a process that is gone."""
    monkeypatch.setattr(background_writer, "world_size", lambda: processes)
    writer, waited = CheckpointWriter(tmp_path / "run", config, BASES), []
    writer.thread = SimpleNamespace(join=waited.append)
    writer.finish()
    assert waited == [seconds]
    killed_after = inspect.signature(PContext.close).parameters["timeout"].default
    assert processes == 1 or seconds <= killed_after - 10


# ---------------------------------------------------------------------------------------------------- of a real run


def test_a_checkpoint_holds_three_numbers_per_trained_parameter_and_nothing_else(tone_run, fresh_accelerate):
    config = load_run(tone_run, ["train.max_steps=1"])
    assert run_training(config, None) == 0
    path = latest_checkpoint(Path(config.output_dir))
    tensors = load_file(path / "model.safetensors")
    trained = sum(tensor.numel() for tensor in tensors.values())
    assert trained > 100_000
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert {name.split(".")[0] for name in tensors} == {"encoder", "adapter"}  # and not the decoder
    with safe_open(path / "optimizer-00000-of-00001.safetensors", "pt") as moments:
        assert set(moments.keys()) == {
            f"{name}|{kind}" for name in tensors for kind in ("exp_avg", "exp_avg_sq")
        }
    assert {p.name for p in path.iterdir()} == FILES - {"ema.safetensors"}
    size = sum(p.stat().st_size for p in path.iterdir())
    assert 12 * trained <= size <= 1.1 * 12 * trained


def test_reading_a_checkpoint_imports_no_pickle_code():
    """Nothing of the training code can load a pickle: there is no call of it."""
    sources = "".join(p.read_text() for p in Path(module.__file__).parent.rglob("*.py"))
    assert "torch.load" not in sources
    assert "import pickle" not in sources


def test_a_slow_copy_holds_up_the_update_and_not_the_other_way_round(
    tone_run, tmp_path, monkeypatch, fresh_accelerate
):
    """The same run twice; in the second one every copy takes far longer than a step."""

    def weights_of(out):
        overrides = [f"output_dir={tmp_path / out}", "train.save_every=1", "train.keep_last=9"]
        run_training(load_run(str(tone_run), [*overrides, "train.max_steps=4"]), None)
        return [load_checkpoint(name_step_folder(tmp_path / out, step)).model for step in range(1, 5)]

    usual = weights_of("usual")
    copy = HostCopies.copy
    monkeypatch.setattr(
        HostCopies, "copy", lambda self, name, tensor: (time.sleep(0.01), copy(self, name, tensor))[1]
    )
    for expected, result in zip(usual, weights_of("slow"), strict=True):
        assert all(torch.equal(expected[name], result[name]) for name in expected)
    changed = [name for name in usual[0] if not torch.equal(usual[0][name], usual[1][name])]
    assert changed  # what the checkpoints hold moves from step to step


def test_a_rank_that_does_not_see_the_run_folder_leaves_its_part_to_the_others(config, tmp_path, monkeypatch):
    """Two machines with a folder of their own each: the part of the second falls to the first."""
    monkeypatch.setattr(background_writer, "world_size", lambda: 2)
    monkeypatch.setattr(background_writer, "rank", lambda: 0)

    def gather(value):
        return [value, ("host1", False) if isinstance(value, tuple) else None]

    monkeypatch.setattr(background_writer, "gather_objects", gather)
    (tmp_path / "run").mkdir()
    assert background_writer.find_writers(tmp_path / "run", patience=0) == ([0], ["host1"])
    assert not list((tmp_path / "run").iterdir())
    monkeypatch.setattr(background_writer, "rank", lambda: 1)
    monkeypatch.setattr(background_writer, "gather_objects", lambda value: [value, value])
    begin = time.monotonic()
    assert background_writer.find_writers(tmp_path / "elsewhere", patience=0.2)[0] == []
    assert time.monotonic() - begin > 0.15
    writer = background_writer.CheckpointWriter(tmp_path / "run", config, BASES, writers=[0])
    assert (writer.part, writer.parts) == (None, 1)
