"""A lock that a killed process left behind does not stop later runs."""

import os
import subprocess
import sys
import threading
import time

import pytest

from uniaudio.train.engines.shm_extension import remove_left_lock


def test_no_lock_is_no_wait(tmp_path, caplog):
    remove_left_lock(tmp_path / "lock", 60)
    assert not caplog.records


def test_an_old_lock_is_removed_and_reported(tmp_path, caplog):
    lock = tmp_path / "lock"
    lock.touch()
    os.utime(lock, (time.time() - 61,) * 2)
    remove_left_lock(lock, 60)
    assert not lock.exists()
    assert [record.getMessage() for record in caplog.records] == [
        f"removing {lock}: the process that made it was stopped"
    ]


def test_a_lock_in_use_is_waited_for(tmp_path, caplog):
    lock = tmp_path / "lock"
    lock.touch()
    threading.Timer(0.5, lock.unlink).start()
    start = time.monotonic()
    remove_left_lock(lock, 60)
    assert 0.4 < time.monotonic() - start < 5
    assert [record.getMessage()[:10] for record in caplog.records] == ["waiting up"]


@pytest.mark.slow
def test_a_killed_process_stops_no_later_one(tmp_path):
    """The process is killed while it holds both locks; the next one compiles and loads."""
    code = "from uniaudio.train.engines.shm_extension import load_shm_extension; load_shm_extension({})"
    environment = {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    first = subprocess.Popen([sys.executable, "-c", code.format(60)], env=environment)
    lock = tmp_path / "deepspeed_shm_comm" / "lock"
    try:
        while not lock.exists():
            assert first.poll() is None
            time.sleep(0.01)
    finally:
        first.kill()
        first.wait()
    assert lock.exists()
    second = subprocess.run(
        [sys.executable, "-c", code.format(1)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert second.returncode == 0, second.stderr
    assert f"removing {lock}" in second.stderr
    assert not lock.exists()
