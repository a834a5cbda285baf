"""``uniaudio launch``: several training processes through accelerate's launcher, and the exit code of the run."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from uniaudio.config.nearest import suggest_name
from uniaudio.config.run import RunConfig
from uniaudio.config.search_paths import find_shipped_root
from uniaudio.config.strict_yaml import load_yaml, write_yaml
from uniaudio.console import announce
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.extras import require_package
from uniaudio.launched_processes import LAUNCH_COMMAND, MESSAGES, make_module_command
from uniaudio.outputs import check_output_folder
from uniaudio.train.checkpoint.folders import refuse_begun_run
from uniaudio.train.engines.precision import refuse_other_precision
from uniaudio.train.signals import CONTINUE_LATER, restore_handlers

USER_MISTAKE = 2
POLL_SECONDS = 0.2  # between two looks whether a signal is to be passed on
STOPPED_ALONE = "the launcher is stopped, the run goes on; after `fg`, Ctrl-C ends the run with a checkpoint"
DEFAULT_PORT = 29500
SHIPPED_ENGINES = "configs/accelerate"
# torchrun drops a machine whose signs of life, dated by its own clock, are older than 15 s by the clock of another one;
# host_watch.py finds out that a machine is gone without comparing clocks
NO_EXPIRY = "keep_alive_max_attempt=1000000"


@dataclass(frozen=True)
class Machines:
    """The machines of a launch.

    Args:
        count: how many. rank: of this one, from 0. address: host name or IP of machine 0, as the others reach it.
        port: of machine 0, free and open to the others. rendezvous: ``static`` or ``c10d``.
    """

    count: int = 1
    rank: int = 0
    address: str = ""
    port: int = DEFAULT_PORT
    rendezvous: str = "static"

    def check(self) -> None:
        """Refuse what the machines could not meet with.

        Raises:
            UserError: naming the option.
        """
        if self.rendezvous not in ("static", "c10d"):
            raise UserError(f"--rendezvous {self.rendezvous}: give static or c10d")
        if self.count == 1:
            if self.rank or self.address:
                raise UserError("--rank and --address need several machines; give --machines, too")
            return
        if not self.address:
            raise UserError(f"--machines {self.count}: give --address, the host name or IP of machine 0")
        if not 0 <= self.rank < self.count:
            raise UserError(
                f"--rank {self.rank}: the {self.count} machines have the ranks 0 to {self.count - 1}"
            )

    def make_settings(self, processes: int) -> dict[str, Any]:
        """Return the keys of accelerate's launch file, for so many processes on each machine."""
        settings = {
            "num_machines": self.count,
            "num_processes": processes * self.count,
            "machine_rank": self.rank,
        }
        if self.count == 1:
            return {**settings, "main_process_port": 0}  # any free one
        return {
            **settings,
            "main_process_ip": self.address,
            "main_process_port": self.port,
            "rdzv_backend": self.rendezvous,
            "same_network": self.rendezvous == "static",
        }


def launch_training(
    engine: str,
    config: RunConfig,
    arguments: Sequence[str],
    processes: int | None,
    machines: Machines,
    resume: str | None = None,
) -> int:
    """Train in several processes and return the exit code of the run.

    Args:
        engine: name of a shipped launch file, or the path of another one. config: as the processes will read it.
        arguments: of ``uniaudio train``. processes: on each machine; default: one for each GPU.
        resume: as for ``run_training``.

    Raises:
        UserError: for a launch file or machines that cannot be, a run that is there, and for what accelerate refuses.
    """
    machines.check()
    if machines.rank == 0:
        check_output_folder(Path(config.output_dir), "output_dir")
    refuse_begun_run(Path(config.output_dir), resume)
    continuing = [] if resume is None else ["--resume", *(["auto"] if resume == "auto" else [])]
    with collect_messages() as messages:
        file = messages.with_name("launch.yaml")
        options = write_launch_file(file, engine, config, processes, machines)
        announce(f"starting {load_yaml(file)['num_processes']} process(es) under {engine} ...")
        os.environ[LAUNCH_COMMAND] = format_command(engine, processes, machines)
        words = [*make_module_command("uniaudio.train"), *arguments, *continuing]
        code, ending = run_launcher([*options, "--no_python", *words])
        sentences = list(dict.fromkeys(each.read_text("utf-8") for each in sorted(messages.iterdir())))
    for sentence in (*sentences, *([ending] if ending else [])):
        print(f"uniaudio: {sentence}", file=sys.stderr, flush=True)
    return code


def write_launch_file(
    file: Path, engine: str, config: RunConfig, processes: int | None, machines: Machines
) -> list[str]:
    """Write the launch file of an engine with processes and machines of this launch.

    Returns:
        The options of accelerate's launcher.

    Raises:
        UserError: see ``launch_training``.
    """
    source = find_launch_file(engine)
    settings = load_yaml(source)
    if "mixed_precision" in settings:
        refuse_other_precision(str(settings["mixed_precision"]).lower(), config)
    kind, in_file = settings.get("distributed_type"), read_count(settings, "num_machines", source)
    if in_file > 1 and machines.count == 1:
        raise UserError(
            f"{engine} is for {in_file} machines; give --machines {in_file}, --rank and --address"
        )
    if kind == "NO":
        if processes not in (None, 1) or machines.count > 1:
            raise UserError(f"{engine} starts one process; use ddp, zero1, zero2, zero3 or fsdp2 for several")
        processes = 1
    if kind == "DEEPSPEED":
        require_package("deepspeed", f"launch {engine}")
        # torchrun on each machine; DeepSpeed's default would start the others by pdsh
        stated = settings.get("deepspeed_config") or {}
        if not isinstance(stated, dict):
            raise UserError(f"{source}: deepspeed_config: must be a mapping of keys to values")
        settings["deepspeed_config"] = {**stated, "deepspeed_multinode_launcher": "standard"}
    gpus = count_gpus()
    if processes is None:
        is_users = source.parent != find_shipped_root() / SHIPPED_ENGINES
        of_all = read_count(settings, "num_processes", source)
        processes = max(of_all // in_file, 1) if is_users else max(gpus, 1)
    elif 0 < gpus < processes and not settings.get("use_cpu"):
        raise UserError(f"-n {processes}: every process needs a GPU, and this machine has {gpus}")
    write_yaml(file, {**settings, **machines.make_settings(processes)})
    # the launcher reads the rendezvous from its options alone
    options = ["--config_file", str(file), "--rdzv_backend", machines.rendezvous]
    return [*options, *(["--rdzv_conf", NO_EXPIRY] if machines.rendezvous == "c10d" else [])]


def read_count(settings: Mapping[str, Any], key: str, file: Path) -> int:
    """Return a number of machines or processes that a launch file states; by default 1.

    Raises:
        UserError: for anything but a whole number above 0.
    """
    value = settings.get(key, 1)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{file}: {key}: give a whole number above 0, not {value!r}")
    return value


def format_command(engine: str, processes: int | None, machines: Machines) -> str:
    """Return the command that continues a run, with {} for its config."""
    words = ["uniaudio", "launch", shlex.quote(engine).replace("{", "{{").replace("}", "}}"), "{}"]
    words += [] if processes is None else ["-n", str(processes)]
    if machines.count > 1:
        words += [f"--machines {machines.count} --rank {machines.rank} --address {machines.address}"]
        words += [f"--port {machines.port} --rendezvous {machines.rendezvous}"]
    return " ".join([*words, "--resume"])


def find_launch_file(engine: str) -> Path:
    """Return the launch file of an engine, a shipped one or that of a path.

    Raises:
        UserError: with the nearest name.
    """
    if engine.endswith((".yaml", ".yml")):
        if Path(engine).is_file():
            return Path(engine)
        raise UserError(f"there is no launch file {engine}")
    folder = find_shipped_root() / SHIPPED_ENGINES
    known = sorted(file.stem for file in folder.glob("*.yaml"))
    if engine not in known:
        raise UserError(
            f"there is no engine '{engine}'{suggest_name(engine, known)}; known: {', '.join(known)}, or a path"
        )
    return folder / f"{engine}.yaml"


def count_gpus() -> int:
    """Return the number of GPUs of this machine."""
    import torch

    return torch.cuda.device_count()


@contextlib.contextmanager
def collect_messages() -> Iterator[Path]:
    """Let the processes write their last sentences into a folder, for all of them often end with the same one."""
    with tempfile.TemporaryDirectory(prefix="uniaudio-launch-") as folder:
        messages = Path(folder, "messages")
        messages.mkdir()
        os.environ[MESSAGES] = str(messages)
        try:
            yield messages
        finally:
            del os.environ[MESSAGES]


def run_launcher(options: Sequence[str]) -> tuple[int, str]:
    """Run accelerate's launcher in a thread, passing signals on to its processes.

    In a thread it leaves signals alone: its own way with them loses the exit codes of the processes.

    Returns:
        The exit code of the run, and a note on the process that failed first.

    Raises:
        UserError: for what accelerate refuses.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser

    parsed = launch_command_parser().parse_args(list(options))
    logging.disable(logging.ERROR)  # of the launcher alone; what it says stands in its exceptions
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            launch_command(parsed)
        except BaseException as problem:  # handed to the main thread, which converts it
            outcome.append(problem)

    thread = threading.Thread(target=work, name="launcher", daemon=True)
    with SignalForwarder() as forwarder:
        thread.start()
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            forwarder.forward()
    return read_outcome(outcome[0] if outcome else None, forwarder.first)


class SignalForwarder:
    """Passes SIGTERM, SIGHUP and SIGINT on to the processes of the launcher; SIGHUP as SIGTERM, so that they save.

    SIGTSTP (Ctrl-Z) stops this process alone. To torchrun's ranks, in sessions of their own, the signal does nothing.
    SIGSTOP would stop them, but they would keep their memory, fall silent to their peers and to whoever looks at the
    lock of the run folder, and would not notice any more that their launcher was killed.
    """

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.first: int | None = None

    def __enter__(self) -> SignalForwarder:
        kinds = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
        self.previous = {kind: signal.signal(kind, self.note) for kind in kinds}
        if signal.getsignal(signal.SIGTSTP) != signal.SIG_IGN:
            self.previous[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, self.stop_alone)
        return self

    def note(self, number: int, frame: FrameType | None) -> None:
        self.waiting.append(signal.SIGTERM if number == signal.SIGHUP else number)
        self.first = self.first or number

    def stop_alone(self, number: int, frame: FrameType | None) -> None:
        """Say what is stopped, and stop until SIGCONT (`fg`, `bg`)."""
        print(f"uniaudio: {STOPPED_ALONE}", file=sys.stderr, flush=True)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self.stop_alone)

    def forward(self) -> None:
        """Send the signals that came to all processes that were started."""
        import psutil

        while self.waiting:
            number = self.waiting[0]
            ranks = psutil.Process().children()
            if not ranks:
                return  # they are not started yet: the next look finds them
            del self.waiting[0]
            for process in ranks:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def __exit__(self, *exception: object) -> None:
        restore_handlers(self.previous)


def read_outcome(problem: BaseException | None, stopped_by: int | None) -> tuple[int, str]:
    """Return the exit code of a run from what its launcher raised, and a note on the process that failed first.

    Of several codes the one that says most counts: a user's mistake, then a stop in order, then a failure.

    Raises:
        UserError: when the launcher itself failed.
    """
    if problem is None or (isinstance(problem, SystemExit) and not problem.code):
        return 0, ""
    if processes := getattr(problem, "failures", None):  # of torchrun
        failures = {rank: failure.exitcode for rank, failure in processes.items()}
    elif isinstance(problem, subprocess.CalledProcessError):
        failures = {0: problem.returncode}
    else:
        with convert_to_user_error("accelerate could not launch the run", "see `uniaudio launch --help`"):
            raise problem
    for code in (USER_MISTAKE, CONTINUE_LATER):
        if code in failures.values():
            return code, ""
    # one that was killed says why others failed, unless the launcher ended it for their sake
    rank = min(failures, key=lambda rank: (failures[rank] >= 0, failures[rank] == -signal.SIGTERM, rank))
    code = failures[rank]
    if stopped_by is not None and (code < 0 or code == 128 + signal.SIGINT):
        name = signal.Signals(stopped_by).name
        return 128 + stopped_by, f"stopped by {name} at once; continue from the last checkpoint with --resume"
    if code >= 0:
        return code, f"process {rank} failed with exit code {code}, see above"
    name = signal.Signals(-code).name
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return (
        128 - code,
        f"process {rank} was ended by {name}{hint}; continue from the last checkpoint with --resume",
    )
