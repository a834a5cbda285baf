"""Processes of a launch: how they are started, and that they end with their launcher and leave it a last sentence."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path

EVERY = 1.0  # seconds between two looks
EXIT_CODE = 1
MESSAGES = "UNIAUDIO_LAUNCH_MESSAGES"  # environment variable: folder where ranks leave their last sentences
# the same: the command that launches a config, which stands for {}
LAUNCH_COMMAND = "UNIAUDIO_LAUNCH_COMMAND"


def make_module_command(module: str) -> list[str]:
    """Return the words that run a module in a new process, unbuffered; its arguments go behind them.

    ``python -m`` looks for modules in the working folder before all other places, so that a file there, such as a
    ``torch.py`` in a folder of data, would be run. The new process does so only where this one does: one that was
    itself started by ``python -m``, or with that folder in ``PYTHONPATH``.
    """
    return [sys.executable, "-u", *([] if searches_working_folder_first() else ["-P"]), "-m", module]


def searches_working_folder_first() -> bool:
    """Return whether Python looks for modules in the working folder before it does in its own library."""
    library, here = os.path.realpath(sysconfig.get_path("stdlib")), os.path.realpath(os.getcwd())
    places = [os.path.realpath(place) for place in sys.path]  # the empty place is the working folder
    return here in places[: places.index(library) if library in places else None]


def has_peers() -> bool:
    """Return whether this process is one of several that a launcher started together."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def is_rank_of_launch() -> bool:
    """Return whether ``uniaudio launch`` started this process, which then ends with its run, however that ends."""
    return MESSAGES in os.environ


def ignore_sigterm() -> None:
    """Ignore SIGTERM from now on, for a process that is about to end because of an error.

    Launchers send it to all others when they have seen one process fail. It must not come before this one has said why
    it ends and released what it holds. Handlers belong to the main thread; in another one nothing happens.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def leave_message(sentence: str) -> bool:
    """Leave the last sentence of this rank for its launcher, if that collects them; it shows equal ones once."""
    folder = os.environ.get(MESSAGES)
    if folder is None:
        return False
    with contextlib.suppress(OSError):  # the launcher is gone, and its folder with it
        Path(folder, f"rank{int(os.environ.get('RANK', '0')):05d}").write_text(sentence, encoding="utf-8")
        return True
    return False


def leave_launcher_group() -> None:
    """Leave the process group of ``uniaudio launch``, which passes signals on: a terminal's Ctrl-C would come twice."""
    if is_rank_of_launch():
        with contextlib.suppress(OSError):  # torchrun has given this process a session of its own
            os.setpgid(0, 0)


def is_launched() -> bool:
    """Return whether a launcher started this process (accelerate, torchrun), rather than a shell.

    A shell may go: a run under ``nohup`` lives on. Without its launcher a rank has lost its peers.
    """
    return has_peers() or "TORCHELASTIC_RUN_ID" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def end_with_parent(what: str, parent: int | None = None) -> None:
    """Watch the parent process in a thread, and end this process at once when it is another one.

    The kernel's own signal at a parent's death (``PR_SET_PDEATHSIG``) goes by the thread that started a process, and
    some launchers start ranks from a thread that ends; so the parent's id is looked at.

    What is on disk stays as it is: whatever is being written is no checkpoint before it is whole.

    Args:
        what: this process, for the sentence on stderr ("process 1 of a launch"); empty: without one.
        parent: its id; default: the parent now.
    """
    parent = parent or os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(EVERY)
        with contextlib.suppress(OSError, ValueError):  # where stderr went is gone as well
            if what:
                print(
                    f"uniaudio: {what} ends: the process that started it is gone", file=sys.stderr, flush=True
                )
        os._exit(EXIT_CODE)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@contextlib.contextmanager
def end_without_teardown() -> Iterator[None]:
    """End this process of a launch with the exit code of the block, without clearing the interpreter away.

    DeepSpeed and FSDP keep process groups beyond ``destroy_process_group``, and their threads can abort the process
    while the interpreter is cleared away: now and then, a rank whose run was finished ended with SIGABRT. What a
    program does at its end is done as ever: threads are waited for, exit handlers run, output is written. Outside a
    launch the process ends as Python ends it.
    """
    code: int | str | None = 0
    try:
        yield
    except SystemExit as end:
        code = end.code
    if not is_launched() or not isinstance(code, int | None):
        sys.exit(code)
    threading._shutdown()  # type: ignore[attr-defined]  # it also ends the threads of executors
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader is gone
            stream.flush()
    os._exit(code or 0)
