"""One run per folder: its lock is taken at the start, renewed by a thread, and removed at the end."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from uniaudio.console import make_console, print_warning
from uniaudio.distributed import is_main, refuse_together
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.outputs import check_output_folder
from uniaudio.train.lock_file import (
    LOCK,
    UNLINKED,
    Holder,
    create,
    describe_holder,
    identify_machine,
    read_holder,
)
from uniaudio.train.lock_takeover import STALE, take

BEAT = 15.0  # seconds between two renewals


class Heartbeat:
    """A thread that renews a lock, and ends the process when the lock is somebody else's.

    That comes about when this process was held up for long (a laptop that slept, a disk that was away): the other run
    believed it to be gone, and two must not go on.

    Args:
        made: folders that were made for the lock, the innermost first.
    """

    def __init__(self, path: Path, holder: Holder, made: Sequence[Path] = ()) -> None:
        self.path, self.holder, self.made = path, holder, made
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.work, name="run lock", daemon=True)
        self.thread.start()

    def work(self) -> None:
        while not self.over.wait(BEAT):
            # a disk that is away for a while; the file counts as stale meanwhile
            with contextlib.suppress(OSError):
                self.renew()

    def renew(self) -> None:
        """Change the lock's time, or make it anew where somebody removed it."""
        now = read_holder(self.path)
        if now is None and self.path.parent.is_dir() and create(self.path, self.holder):
            return
        if now is not None and now.token == self.holder.token:
            os.utime(self.path)
        elif now is not None and now.token != "unreadable":
            exit_process(self.path.parent, now)

    def stop(self) -> None:
        self.over.set()
        self.thread.join()


def exit_process(run_dir: Path, holder: Holder) -> None:
    """End this process at once: its folder is another run's."""
    make_console(stderr=True).print(
        f"uniaudio: {run_dir} was taken over by {holder}; this run stops", soft_wrap=True
    )
    os._exit(1)


@contextmanager
def hold_run_folder(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run folder, which is made where it is missing. Every rank must call it at the same point.

    The main process holds it; all are refused together.

    Raises:
        UserError: when another run holds it, or the folder cannot be written.
    """
    heartbeat = None
    try:
        with refuse_together():
            if is_main():
                heartbeat = begin_to_hold(run_dir)
        yield
    finally:
        if heartbeat is not None:
            release_lock(heartbeat)


def begin_to_hold(run_dir: Path) -> Heartbeat:
    """Take the lock of a folder and begin to renew it; say so when it was a dead run's."""
    check_output_folder(run_dir, "output_dir")
    made = [folder for folder in (run_dir, *run_dir.parents) if not folder.exists()]
    run_dir.mkdir(parents=True, exist_ok=True)
    path, holder = run_dir / LOCK, Holder.describe_this_process()

    def say(sentence: str) -> None:
        print_warning(f"{run_dir}: {sentence}")

    with convert_to_user_error(f"output_dir: {path} cannot be created", "set another output_dir"):
        before = take(path, holder, say)
    if before is not None:
        say(f"taken over from {before}, which is gone")
    return Heartbeat(path, holder, made)


def release_lock(heartbeat: Heartbeat) -> None:
    """Stop renewing a lock and remove it, and the folders made for it if nothing came into them."""
    heartbeat.stop()
    path = heartbeat.path
    with contextlib.suppress(OSError):
        now = read_holder(path)
        if now is not None and now.token == heartbeat.holder.token:
            path.unlink()
        for folder in heartbeat.made:
            folder.rmdir()  # refused by the system where anything is in it


def refuse_held_folder(run_dir: Path) -> None:
    """Refuse a run folder that somebody trains in; for commands that read or replace what changes meanwhile.

    Raises:
        UserError: naming the process.
    """
    path = run_dir / LOCK
    holder = read_holder(path)
    if holder is None or holder.is_gone():
        return
    if holder.machine == identify_machine() or time.time() - path.stat().st_mtime <= STALE:
        raise UserError(describe_holder(run_dir, holder))


def refuse_filled_folder(folder: Path) -> None:
    """Refuse to write a new run into a folder that holds anything but its lock.

    Raises:
        UserError: naming the folder.
    """
    if folder.is_dir() and any(not path.name.startswith((LOCK, UNLINKED)) for path in folder.iterdir()):
        raise UserError(f"{folder} is not empty; give --out a new folder")
