"""Hosts in namespaces of this machine: names, addresses, process ids, shared memory of their own, and a wire.

Root is needed. Nothing outside the namespaces that are made here is touched, and all of them go when ``Hosts`` closes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
NET = "10.77.0"
SHUTDOWN_SECONDS = 10
# in namespaces of its own a host gets a name, the names of the others, /proc, /dev/shm and a folder that only it sees
# under a path that all have; it outlives the command, as a machine does, until the last process is gone
PROLOGUE = """
hostname "$1"
mount --bind "$2" /etc/hosts
mount --bind "$3" "$4"
mount -t tmpfs tmpfs /dev/shm
shift 4
code=0
"$@" || code=$?
set -- /proc/[0-9]*
while [ $# -gt 1 ]; do
    sleep 0.1
    set -- /proc/[0-9]*
done
exit $code
"""
NUMBERS = itertools.count()  # of the networks of this process


class NoHostsError(Exception):
    """Hosts cannot be made on this machine; the message says why."""


def ip(*words: str) -> None:
    """Run ``ip`` of iproute2.

    Raises:
        NoHostsError: with what it says.
    """
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise NoHostsError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def explain_no_hosts() -> str:
    """Return why hosts cannot be made here; an empty text where they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    for tool in ("ip", "unshare", "hostname", "mount"):
        if shutil.which(tool) is None:
            return f"there is no {tool} here"
    name = f"uniaudio-try-{os.getpid()}-{next(NUMBERS)}"  # two rehearsals may ask at once
    try:
        ip("netns", "add", name)
    except NoHostsError as problem:
        return str(problem)
    try:
        ip("-n", name, "link", "add", "one", "type", "veth", "peer", "name", "two")
        ip("-n", name, "link", "add", "wire", "type", "bridge")
        subprocess.run(["unshare", "-u", "-m", "-p", "-f", "true"], check=True, capture_output=True)
    except (NoHostsError, subprocess.CalledProcessError) as problem:
        return str(problem)
    finally:
        ip("netns", "del", name)
    return ""


class Command:
    """A command that runs on a host; what it prints goes to a file.

    Args:
        words: of the command, in the namespaces of the host.
    """

    def __init__(self, words: Sequence[str], environment: Mapping[str, str], output: Path, cwd: Path) -> None:
        self.output = output
        with output.open("w") as stream:
            self.process = subprocess.Popen(
                words,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text(errors="replace")

    @property
    def sentences(self) -> list[str]:
        """The last words of the command: its lines that begin with the program's name."""
        return [line for line in self.text.splitlines() if line.startswith("uniaudio: ")]

    def is_over(self) -> bool:
        return self.process.poll() is not None

    def wait(self, seconds: float) -> int | None:
        """Wait for its end and return the exit code; None where it goes on after so many seconds."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None

    def find_processes(self, module: str = "uniaudio") -> list[int]:
        """Return the ids, on this machine, of the Python processes below the command that run a module."""
        import psutil

        ids = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    words = each.cmdline()
                    is_python = bool(words) and Path(words[0]).name.startswith("python")
                    if is_python and "-m" in words and words[words.index("-m") + 1] == module:
                        ids.append(each.pid)
        return ids

    @property
    def launcher(self) -> int:
        """The id of ``uniaudio launch`` on this machine."""
        (launcher,) = self.find_processes("uniaudio")
        return launcher

    @property
    def ranks(self) -> list[int]:
        return self.find_processes("uniaudio.train")

    def terminate(self) -> None:
        """Send SIGTERM to the launcher."""
        os.kill(self.launcher, signal.SIGTERM)

    def kill(self) -> None:
        """End the host's processes at once: with the first of its process ids all others go, as in a power cut."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SHUTDOWN_SECONDS)


class Hosts:
    """So many hosts on one wire, from ``host0`` at 10.77.0.1 on.

    Args:
        folder: gets a folder for each host, with its temporary files and caches.
        python: of the commands. Default: of this process.

    Attributes:
        private: a path under which each host sees a folder of its own, see ``find_private``.
    """

    def __init__(self, count: int, folder: Path, python: str = sys.executable) -> None:
        self.count, self.folder, self.python = count, folder, python
        self.prefix = f"uniaudio-{os.getpid()}-{next(NUMBERS)}"
        self.wire = f"{self.prefix}-wire"
        self.private = folder / self.prefix / "private"
        self.relay: subprocess.Popen[bytes] | None = None
        self.commands: list[Command] = []

    def __enter__(self) -> Hosts:
        reason = explain_no_hosts()
        if reason:
            raise NoHostsError(reason)
        ip("netns", "add", self.wire)
        ip("-n", self.wire, "link", "add", "wire", "type", "bridge")
        ip("-n", self.wire, "link", "set", "wire", "up")
        names = ["127.0.0.1 localhost"]
        for number in range(self.count):
            space = self.name_space(number)
            ip("netns", "add", space)
            ends = ("eth0", "type", "veth", "peer", "name", f"port{number}", "netns", self.wire)
            ip("-n", space, "link", "add", *ends)
            ip("-n", space, "addr", "add", f"{NET}.{number + 1}/24", "dev", "eth0")
            for end in ("lo", "eth0"):
                ip("-n", space, "link", "set", end, "up")
            ip("-n", self.wire, "link", "set", f"port{number}", "up")
            names.append(f"{NET}.{number + 1} host{number}")
            self.plug(number)
            (self.place_host(number) / "tmp").mkdir(parents=True, exist_ok=True)
            self.find_private(number).mkdir(exist_ok=True)
        self.private.mkdir(exist_ok=True)
        (self.private.parent / "hosts").write_text("\n".join(names) + "\n")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def place_host(self, number: int) -> Path:
        """Return the folder of a host."""
        return self.private.parent / f"host{number}"

    def find_private(self, number: int) -> Path:
        """Return where, on this machine, the folder lies that a host sees as ``private``."""
        return self.place_host(number) / "private"

    def close(self) -> None:
        """End all that runs on the hosts, and remove their network."""
        for command in self.commands:
            command.kill()
        self.speed_up()
        for space in (*map(self.name_space, range(self.count)), self.wire):
            with contextlib.suppress(NoHostsError):
                ip("netns", "del", space)

    def name_space(self, number: int) -> str:
        return f"{self.prefix}-{number}"

    def unplug(self, number: int) -> None:
        """Cut a host off: its own end of the wire stays up, and what it sends gets lost."""
        ip("-n", self.wire, "link", "set", f"port{number}", "nomaster")

    def plug(self, number: int) -> None:
        ip("-n", self.wire, "link", "set", f"port{number}", "master", "wire")

    def count_sent_bytes(self, number: int) -> int:
        """Return the bytes that a host has sent over the wire, headers included."""
        words = ["ip", "-n", self.wire, "-s", "-j", "link", "show", f"port{number}"]
        (link,) = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
        return int(link["stats64"]["rx"]["bytes"])

    def slow_down(self, mbit: float, delay_ms: float) -> None:
        """Put a relay with a bandwidth and a delay between host 0 and host 1, in the place of the bridge."""
        for number in (0, 1):
            self.unplug(number)
        words = [self.python, str(HERE / "slow_wire.py"), "port0", "port1", str(mbit), str(delay_ms)]
        self.relay = subprocess.Popen(["ip", "netns", "exec", self.wire, *words], stdout=subprocess.PIPE)
        assert self.relay.stdout is not None
        if self.relay.stdout.readline() != b"ready\n":
            raise NoHostsError("the relay of the slow wire cannot be started")

    def speed_up(self) -> None:
        """Put the bridge back."""
        if self.relay is not None:
            self.relay.kill()
            self.relay.wait()
            self.relay = None
            for number in (0, 1):
                self.plug(number)

    def start(self, number: int, words: Sequence[str], **environment: str) -> Command:
        """Start ``python WORDS`` on a host, see ``start_program``."""
        return self.start_program(number, [self.python, *words], **environment)

    def start_program(self, number: int, words: Sequence[str], **environment: str) -> Command:
        """Start a program on a host.

        Args:
            environment: variables on top of those of this process.
        """
        place = self.place_host(number)
        enter = ["ip", "netns", "exec", self.name_space(number)]
        enter += ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        enter += ["sh", "-ec", PROLOGUE, "host", f"host{number}", str(self.private.parent / "hosts")]
        enter += [str(self.find_private(number)), str(self.private)]
        variables = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONDONTWRITEBYTECODE": "",  # else every process compiles the package anew
            "TMPDIR": str(place / "tmp"),
            "UNIAUDIO_CACHE": str(place / "cache"),
            **environment,
        }
        command = Command([*enter, *words], variables, place / f"output-{len(self.commands)}.txt", place)
        self.commands.append(command)
        return command


def wait_until(condition: Callable[[], bool], seconds: float) -> float | None:
    """Wait for a condition and return the seconds it took; None where it took longer."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() - begin > seconds:
            return None
        time.sleep(0.05)
    return time.monotonic() - begin
