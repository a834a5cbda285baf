"""What went wrong with data workers, in a sentence: one that died, shared memory or open files that do not suffice.

torch raises from the signal of a child's end, so the death of a worker can come up anywhere in the main thread: while
a micro-batch is waited for, or in the midst of a forward.
"""

from __future__ import annotations

import contextlib
import errno
import re
import resource
import sys
import weakref
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from types import TracebackType
from typing import Any

from torch import Tensor

from uniaudio.errors import UserError

DIED = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.*)", re.DOTALL)
# torch's own words for a pipe whose other end is gone, of which a death is the reason
CUT = (EOFError, ConnectionError, BrokenPipeError)
TOO_MANY_FILES = ("too many open files", "items of ancillary data")
NO_SHARED_MEMORY = ("bus error", "shared memory", "no space left on device", "cannot allocate memory")

ENLARGE_SHARED_MEMORY = (
    "/dev/shm, through which data workers pass their batches, is full: enlarge it (docker run "
    "--shm-size=8g, or under Kubernetes an emptyDir of medium Memory), or lower data.workers (0 "
    "needs none) or data.prefetch"
)
RAISE_FILE_LIMIT = (
    "too many open files: every batch of a data worker needs some; raise the limit (ulimit -n "
    "65536), or lower data.workers (0 needs none) or data.prefetch"
)


# more is not asked for: some systems walk through all possible files when a process starts
MOST_FILES = 65536
FILES_OF_PROCESS, FILES_OF_WORKER, FILES_OF_BATCH = 48, 8, 16


def ignore_cut_connections(
    kind: type[BaseException], problem: BaseException, trace: TracebackType | None
) -> None:
    """Stand in for ``sys.excepthook`` in a data worker: say nothing of connections that its run has cut.

    The thread that hands over file descriptors reports there what it meets, also that a run was stopped at once in the
    midst of taking one.
    """
    if not isinstance(problem, CUT):
        sys.__excepthook__(kind, problem, trace)


# the data workers that this process started (with ``pid`` and ``at`` in shared memory), by identity
WORKERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def find_row_of(pids: str) -> str:
    """Return the row that the first known of some processes was at, or an empty text."""
    by_pid = {worker.pid.value: worker for worker in WORKERS.values()}
    dead = [by_pid[int(pid)] for pid in re.findall(r"\d+", pids) if int(pid) in by_pid]
    return read_current_row(dead[0]) if dead else ""


def read_current_row(worker: Any) -> str:
    """Return the name of the row that a worker is at."""
    return str(worker.at.value.decode(errors="replace"))


def describe_fault(problem: BaseException, worker: Any = None) -> str | None:
    """Return a sentence about a data worker, or None where a problem is about something else.

    Args:
        worker: the one that was waited for, if one was: then its pipe and its time are meant.
    """
    text = str(problem)
    low = text.lower()
    died = DIED.match(text)
    if died is not None:
        row = find_row_of(died[1]) or (read_current_row(worker) if worker is not None else "")
        if "bus error" in low:
            return ENLARGE_SHARED_MEMORY
        sentence = f"a data worker died; it was at: {row or 'its start'}"
        advice = " (killed by the system, usually for lack of memory: lower data.workers or data.prefetch)"
        return sentence + advice if "killed" in died[2] else sentence
    # what was raised in the worker says itself what it is
    if worker is None or id(worker) not in WORKERS or text.startswith("Caught "):
        return None
    row = read_current_row(worker) or "its start"
    if getattr(problem, "errno", None) == errno.EMFILE or any(sign in low for sign in TOO_MANY_FILES):
        return RAISE_FILE_LIMIT
    if isinstance(problem, CUT):
        return f"a data worker died; it was at: {row}"
    if "dataloader timed out" in low:
        return f"a data worker did not answer in time; it was at: {row} (data.patience)"
    if getattr(problem, "errno", None) == errno.ENOSPC or any(sign in low for sign in NO_SHARED_MEMORY):
        return ENLARGE_SHARED_MEMORY
    return None


def ensure_open_files(workers: int, prefetch: int) -> None:
    """Raise this process's limit of open files as far as the system lets it, and refuse one that cannot suffice.

    A clip that cannot be opened for want of files would count as a broken one.

    Args:
        workers: data workers of this process. prefetch: micro-batches that each keeps ready.

    Raises:
        UserError: naming the limit.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    needed = FILES_OF_PROCESS + FILES_OF_WORKER * workers + FILES_OF_BATCH * prefetch
    if soft != resource.RLIM_INFINITY and soft < needed:
        raise UserError(
            f"ulimit -n is {soft}, but {workers} data workers with {prefetch} micro-batches ready need about {needed} "
            "open files; raise the limit (ulimit -n 65536), or lower data.workers (0 needs none) or data.prefetch"
        )


@contextlib.contextmanager
def explain_worker_faults(worker: Any = None) -> Iterator[None]:
    """Turn what torch raises about data workers into a sentence; all else passes.

    Raises:
        UserError: naming the row that a worker was at, or the setting to change.
    """
    try:
        yield
    except (RuntimeError, OSError, EOFError) as problem:
        if sentence := describe_fault(problem, worker):
            raise UserError(sentence) from None
        raise


def share_tensors(value: Any) -> None:
    """Move the tensors in a nested value to shared memory.

    Handing them over would do the same later, in a thread of the queue, where a failure only loses the batch.

    Raises:
        RuntimeError: of torch, where there is no room or no file to be had.
    """
    if isinstance(value, Tensor):
        if value.untyped_storage().nbytes():
            value.share_memory_()
    elif is_dataclass(value):
        for each in fields(value):
            share_tensors(getattr(value, each.name))
    elif isinstance(value, tuple | list):
        for item in value:
            share_tensors(item)
    elif isinstance(value, dict):
        share_tensors(list(value.values()))
