"""Processes of their own that need no start: they are forked from one that has imported everything they use.

``python -m uniaudio.train`` spends six seconds of processor time on its imports, a run of the tests less than one on
its steps. A process from here has its own pid, environment, working directory, output and signals, and no state of
the tests; but what a library reads from the environment while it is imported is as it was when the tests began.

Launches of several processes come from here too: the ranks get the variables that torchrun gives them.
"""

import atexit
import contextlib
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).parents[2]
SETTINGS = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
AT_FIRST = {**os.environ, **SETTINGS}
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
    """Kill a process and what it has forked."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


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
    if words[0].endswith("accelerate"):
        launch_with_accelerate(words)
    elif processes > 1:
        launch_ranks(processes, words)
    else:
        execute(words)


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


def launch_ranks(count: int, words: list[str]) -> None:
    """Fork the ranks of a launch, wait for them, and end the others when one fails, as torchrun does."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks: set[int] = set()

    def end_ranks(*_: object) -> None:
        for pid in ranks:
            os.kill(pid, signal.SIGTERM)

    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            numbers |= {"MASTER_PORT": port, "TORCHELASTIC_RESTART_COUNT": 0}
            os.environ |= {key: str(value) for key, value in numbers.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "forked"}
            execute(words)
        ranks.add(pid)
    signal.signal(signal.SIGTERM, end_ranks)
    failed = False
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        if status and not failed:
            failed = True
            end_ranks()
    os._exit(int(failed))


def launch_with_accelerate(words: list[str]) -> None:
    """Let ``accelerate launch`` read its file, and fork the ranks that it would start with the same variables."""
    import torch.distributed.run as torchrun
    from accelerate.commands.accelerate_cli import main

    def launch(given: SimpleNamespace) -> None:
        script = ["-m", given.training_script] if given.module else [given.training_script]
        launch_ranks(int(given.nproc_per_node), [*script, *given.training_script_args])

    torchrun.run = launch
    sys.argv = words
    main()
