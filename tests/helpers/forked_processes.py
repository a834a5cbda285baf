"""Processes of their own that need no start: they are forked from one that has imported everything they use.

``python -m uniaudio.train`` spends six seconds of processor time on its imports, a run of the tests less than one on
its steps. A process from here has its own pid, environment, working directory, output and signals, and no state of
the tests; but what a library reads from the environment while it is imported is as it was when the tests began.

A launch of several processes is torchrun's, also under ``accelerate launch``: it reads its options and files, watches
the ranks and ends them; they alone are forked where it would start them.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
SETTINGS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
AT_FIRST = {**os.environ, **SETTINGS}
LAUNCH = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "uniaudio.cli",
        "uniaudio.commands.train",
        "torch.distributed.run",
        "accelerate.commands.launch",
        "deepspeed",
    ]
)


class ForkedProcess:
    """A started process, with the methods of ``subprocess.Popen`` that tests use."""

    def __init__(self, process: multiprocessing.Process) -> None:
        self.process = process
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0)
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()


def start_server() -> None:
    """Start the process that all others are forked from, without what tests have set in this one."""
    if forkserver._forkserver._forkserver_pid is None:
        before, folder = dict(os.environ), Path.cwd()
        os.environ.clear()
        os.environ.update(AT_FIRST)
        os.chdir(ROOT)
        try:
            forkserver.ensure_running()
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ.update(before)


def start(
    words: Sequence[object],
    environment: Mapping[str, str] = {},
    folder: Path | None = None,
    output: Path | None = None,
    errors: Path | None = None,
    processes: int = 1,
    prepare: Callable[[], object] | None = None,
) -> ForkedProcess:
    """Start what ``python WORDS`` would: a module after ``-m``, or a script.

    Args:
        environment: variables beyond those of these tests. output, errors: files that stdout and stderr are appended
            to; default: nowhere, and the file of the output. processes: more than one are a launch of so many ranks,
            for which the returned process waits. prepare: called in the new process, before anything else.
    """
    start_server()
    place = str(output or os.devnull)
    process = CONTEXT.Process(
        target=begin,
        args=(
            [str(word) for word in words],
            {**os.environ, **SETTINGS, **environment},
            str(folder or Path.cwd()),
            (place, str(errors or place)),
            processes,
            prepare,
        ),
    )
    process.start()
    return ForkedProcess(process)


def run(
    words: Sequence[object],
    environment: Mapping[str, str] = {},
    folder: Path | None = None,
    processes: int = 1,
    prepare: Callable[[], object] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Do the same to its end; return its exit code and what it printed."""
    with tempfile.TemporaryDirectory() as place:
        output, errors = Path(place, "output"), Path(place, "errors")
        process = start(words, environment, folder, output, errors, processes, prepare)
        try:
            code = process.wait(timeout)
        except BaseException:
            kill_all(process)
            raise
        return subprocess.CompletedProcess(
            list(words), code, output.read_text(encoding="utf-8"), errors.read_text(encoding="utf-8")
        )


def kill_all(process: ForkedProcess) -> None:
    """Kill a process and everything that it started, and wait until all have ended."""
    everything = []
    if process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
            leader = psutil.Process(process.pid)
            everything = [leader, *leader.children(recursive=True)]
    for member in everything:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    while any(map(is_alive, everything)):
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs; one that ended and that nobody waited for does not."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def find_ranks(launcher: ForkedProcess) -> dict[int, int]:
    """Return the processes of a launch by their rank."""
    names = {child.pid: child.name() for child in psutil.Process(launcher.pid).children()}
    return {int(name.removeprefix("rank ")): pid for pid, name in names.items() if name.startswith("rank ")}


# ---------------------------------------------------------------------- in the new process


def begin(
    words: list[str],
    environment: dict[str, str],
    folder: str,
    places: tuple[str, str],
    processes: int,
    prepare: Callable[[], object] | None,
) -> None:
    """Take on environment, folder and output in the new process, and run."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

    os.setsid()
    # of workers that load data, as in a process that was started
    multiprocessing.set_start_method("fork", force=True)
    for stream, place in zip((sys.stdout, sys.stderr), places, strict=True):
        file = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream.fileno())
        os.close(file)
        stream.reconfigure(encoding="utf-8", line_buffering=True)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if prepare:
        prepare()
    SubprocessHandler._popen = fork_rank
    execute([*LAUNCH, str(processes), *words] if processes > 1 else words)


def execute(words: list[str]) -> None:
    """Run a module or a script as the interpreter does, and end this process."""
    code = 1
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            sys.path.insert(0, os.getcwd())
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class ForkedRank:
    """A process of a launch, with what torchrun uses of ``subprocess.Popen``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float) -> int:
        last = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > last:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return self.returncode


def fork_rank(handler: object, command: Sequence[str], environment: Mapping[str, str]) -> ForkedRank:
    """Fork what torchrun would start: a session of its own, without the launcher's files and signal handlers.

    Its name in ``/proc/PID/comm`` is "rank" and its number; ``/proc/PID/environ`` is that of the first process.
    """
    pid = os.fork()
    if pid == 0:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        empty_files()
        os.environ.clear()
        os.environ.update(environment)
        Path("/proc/self/comm").write_text(f"rank {environment['RANK']}")
        _python, _unbuffered, *words = command
        execute(words)
    return ForkedRank(pid)


def empty_files() -> None:
    """Let go of inherited files, among them the socket at which a launcher listens.

    They are replaced and not closed: an object of the launcher that is collected later closes its file by the number,
    which would be that of another file by then.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2:
            os.dup2(nothing, number)
