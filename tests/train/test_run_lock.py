"""One run per folder: who holds it is named, the dead are replaced, and of several starts one wins."""

import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace

import pytest

from uniaudio.errors import UserError
from uniaudio.train import lock_file, lock_takeover, run_lock
from uniaudio.train.lock_file import LOCK, Holder, read_holder
from uniaudio.train.lock_takeover import take
from uniaudio.train.run_lock import hold_run_folder, refuse_held_folder


@pytest.fixture
def lock(tmp_path):
    return tmp_path / LOCK


def me(**changes):
    return replace(Holder.describe_this_process(), **changes)


def put(path, holder, seconds_ago=0.0):
    path.write_text(json.dumps(asdict(holder)))
    then = time.time() - seconds_ago
    os.utime(path, (then, then))
    return holder


@pytest.fixture
def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_run_is_refused_by_name_and_the_folder_is_free_afterwards(tmp_path):
    folder = tmp_path / "runs" / "one"
    with hold_run_folder(folder):
        assert read_holder(folder / LOCK).pid == os.getpid()
        with pytest.raises(UserError) as refused, hold_run_folder(folder):
            pass
        assert f"process {os.getpid()} on {lock_file.socket.gethostname()} since 2" in str(refused.value)
        assert "\n" not in str(refused.value)
        with pytest.raises(UserError, match="is in use by another run"):
            refuse_held_folder(folder)
        assert [path.name for path in folder.iterdir()] == [LOCK]
        (folder / "metrics.jsonl").touch()
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]
    refuse_held_folder(folder)
    with hold_run_folder(folder):
        pass


def test_a_folder_that_nothing_came_into_is_removed(tmp_path):
    with pytest.raises(UserError, match="no such card"), hold_run_folder(tmp_path / "new"):
        raise UserError("no such card")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("of", ["a dead process", "an id that is used again"])
def test_the_lock_of_a_dead_run_is_taken_over_and_that_is_said(tmp_path, lock, dead_pid, of, capsys):
    put(lock, me(pid=dead_pid) if of == "a dead process" else me(started=me().started - 5))
    with hold_run_folder(tmp_path):
        assert read_holder(lock).pid == os.getpid()
    assert "which is gone" in " ".join(capsys.readouterr().out.split())
    assert not list(tmp_path.iterdir())


def test_a_process_that_was_killed_but_not_waited_for_is_gone(lock):
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    put(lock, me(pid=process.pid, started=lock_file.read_process_start(process.pid)))
    with pytest.raises(UserError, match=f"process {process.pid} "):
        take(lock, me())
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
    assert take(lock, me()).pid == process.pid
    process.wait()


def test_a_run_of_another_machine_is_taken_over_when_it_gives_no_sign_of_life(lock, monkeypatch):
    monkeypatch.setattr(lock_takeover, "LOOK", 0.01)
    monkeypatch.setattr(lock_takeover, "STALE", 0.3)
    said = []
    far = put(lock, me(host="far", machine="another boot"), seconds_ago=60)
    assert take(lock, me(), said.append) == far
    assert said == []  # it was plain at once
    put(lock, far)
    begun = time.monotonic()
    assert take(lock, me(), said.append) == far
    assert 0.2 < time.monotonic() - begun < 5
    assert "waiting for a sign of life from process" in said[0]


def test_a_run_of_another_machine_that_gives_signs_of_life_is_not_taken_over(lock, monkeypatch):
    monkeypatch.setattr(lock_takeover, "LOOK", 0.01)
    put(lock, me(host="far", machine="another boot"))
    threading.Timer(0.1, os.utime, [lock]).start()
    with pytest.raises(UserError, match="on far since"):
        take(lock, me())


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("state", ["free", "stale", "stale, and a claim of somebody who died"])
def test_of_several_starts_at_one_moment_one_wins(tmp_path, dead_pid, monkeypatch, state, links):
    def no_links(source, target):
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    for attempt in range(12):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        lock = folder / LOCK
        if state != "free":
            dead = put(lock, me(pid=dead_pid))
            if "claim" in state:
                put(folder / f"{LOCK}-{dead.token}", me(pid=dead_pid))
        together, winners, losers = threading.Barrier(6), [], []

        def start(lock=lock, together=together, winners=winners, losers=losers):
            holder = me()
            together.wait()
            try:
                take(lock, holder)
                winners.append(holder)
            except UserError as refused:
                losers.append(str(refused))

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(winners) == 1
        assert len(losers) == 5
        assert read_holder(lock) == winners[0]
        assert [path.name for path in folder.iterdir()] == [LOCK]


def test_a_lock_that_says_nothing_is_waited_for_and_then_taken_over(lock, monkeypatch):
    monkeypatch.setattr(lock_takeover, "LOOK", 0.01)
    monkeypatch.setattr(lock_takeover, "STALE", 0.2)
    for text in ("", "{", "[]", "null", '{"pid": 3}', "\udce9"):
        lock.write_bytes(text.encode(errors="surrogateescape"))
        assert take(lock, holder := me()).host == "an unknown machine"
        assert read_holder(lock) == holder


def test_a_run_whose_lock_was_taken_over_ends(tmp_path, lock, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT", 0.02)
    ended = threading.Event()
    monkeypatch.setattr(run_lock, "exit_process", lambda folder, holder: ended.set())
    with hold_run_folder(tmp_path):
        lock.unlink()  # somebody tidied up: it comes back
        until = time.monotonic() + 5
        while not lock.is_file() and time.monotonic() < until:
            time.sleep(0.01)
        assert read_holder(lock).pid == os.getpid()
        assert not ended.is_set()
        other = put(lock, me())
        assert ended.wait(5)
    assert read_holder(lock) == other  # not ours to remove


def test_the_lock_is_renewed(tmp_path, lock, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT", 0.02)
    with hold_run_folder(tmp_path):
        os.utime(lock, (0, 0))
        until = time.monotonic() + 5
        while lock.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.01)
        assert abs(lock.stat().st_mtime - time.time()) < 5
