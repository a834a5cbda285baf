"""Runs on several machines end on all of them when one is gone or refuses, and not hours later.

A process whose machine is switched off, or cut from the network, sends no word: the others would wait in an exchange
until that times out. So the first process of every machine writes a beat into the launcher's store, and every process
looks at those of all machines. A process that ends with an error leaves its sentence there for the others.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from uniaudio.distributed import open_launch_store, read_store
from uniaudio.errors import LostProcessError, UserError, escape_text, read_first_line
from uniaudio.launched_processes import leave_message

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 30.0  # without a beat until a machine counts as gone; a short cut is no loss
GRACE_SECONDS = 1.5  # left to a process to end by itself, when another one has ended
LINGER_BEATS = 4  # that a process with an error stays, for its store may go with it
CONNECT_BEATS = 10  # that it waits for the store, when it fails before that is there
START_SECONDS = 600.0  # until every machine has loaded its libraries and beats
USER_MISTAKE, FAILURE = 2, 1  # exit codes


@dataclass(frozen=True)
class HostPlace:
    """Where a process is in a launch on several machines.

    Args:
        process: its rank. host: number of its machine. hosts: how many there are. is_first: of its machine.
        address, port: of the launcher's store. start: of the processes by this launcher, which may start them again.
    """

    process: int
    host: int
    hosts: int
    is_first: bool
    address: str
    port: int
    start: str = "0"

    @classmethod
    def read_environment(cls) -> HostPlace | None:
        """Return what the launcher set; None for a run on one machine."""
        known = os.environ
        hosts = int(known.get("GROUP_WORLD_SIZE", "1"))
        if hosts < 2 or "MASTER_ADDR" not in known or "MASTER_PORT" not in known:
            return None
        return cls(
            int(known["RANK"]),
            int(known["GROUP_RANK"]),
            hosts,
            known["LOCAL_RANK"] == "0",
            known["MASTER_ADDR"],
            int(known["MASTER_PORT"]),
            known.get("TORCHELASTIC_RESTART_COUNT", "0"),
        )


def end_process(code: int, sentence: str) -> None:
    """End this process at once; what is on disk stays as it is, and a checkpoint under way is none."""
    with contextlib.suppress(OSError, ValueError):
        if not leave_message(sentence):
            print(f"uniaudio: {sentence}", file=sys.stderr, flush=True)
    os._exit(code)


class HostWatch:
    """Beats for its machine, and ends its process when another machine is silent or has ended.

    Args:
        end: called in a thread with an exit code and a sentence. beat, silence, grace: in seconds.
        start_seconds: more than ``silence`` that a machine has until its first beat.
    """

    def __init__(
        self,
        place: HostPlace,
        end: Callable[[int, str], None] = end_process,
        beat: float = BEAT_SECONDS,
        silence: float = SILENCE_SECONDS,
        grace: float = GRACE_SECONDS,
        start_seconds: float = START_SECONDS,
    ) -> None:
        self.place, self.end = place, end
        self.beat, self.silence, self.grace, self.start_seconds = beat, silence, grace, start_seconds
        self.over = threading.Event()
        self.names = {0: place.address}
        self.beat_at: dict[int, float] = {}
        self.store: Any = None
        self.threads = [threading.Thread(target=work, daemon=True) for work in (self.talk, self.look)]

    def __enter__(self) -> HostWatch:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind: object, problem: BaseException | None, trace: object) -> None:
        if isinstance(problem, Exception):
            self.leave_ending(problem)
        self.over.set()

    def name_key(self, key: object) -> str:
        return f"uniaudio/{self.place.start}/{key}"

    def talk(self) -> None:
        """Beat and listen until the store is gone. A thread of its own, for it may wait for an answer for ever."""
        beats: dict[int, str] = {}
        try:
            self.store = open_launch_store(self.place.address, self.place.port, self.start_seconds)
            begin, number = time.monotonic(), 0
            self.beat_at = dict.fromkeys(range(self.place.hosts), begin + self.start_seconds)
            while not self.over.wait(self.beat):
                number += 1
                if self.place.is_first:
                    key = self.name_key(self.place.host)
                    self.store.set(key, f"{number} {socket.gethostname()}")
                for host, value in self.read_beats().items():
                    if beats.get(host) != value:
                        beats[host], self.beat_at[host] = value, time.monotonic()
                        self.names[host] = value.partition(" ")[2]
                if ending := read_store(self.store, [self.name_key("ending")]):
                    self.end_after(ending[0])
        except RuntimeError:  # the base of all that torch raises for a store
            # its machine ended or will be found silent: soon, for an end in good order takes the others along
            soon = time.monotonic() - self.silence + 10 * self.beat
            self.beat_at[0] = min(self.beat_at.get(0, soon), soon)

    def read_beats(self) -> dict[int, str]:
        """Return the newest beats of the machines that have begun to beat."""
        hosts = range(self.place.hosts)
        if values := read_store(self.store, [self.name_key(host) for host in hosts]):
            return dict(enumerate(values))
        return {host: value[0] for host in hosts if (value := read_store(self.store, [self.name_key(host)]))}

    def end_after(self, ending: str) -> None:
        """End this process after another one, unless it ends by itself: often all have the same error."""
        process, code, sentence = ending.split(" ", 2)
        if int(process) != self.place.process and not self.over.wait(self.grace):
            self.end(int(code), sentence)
            self.over.set()

    def look(self) -> None:
        """End this process when a machine has been silent for too long."""
        before = time.monotonic()
        while not self.over.wait(self.beat):
            now = time.monotonic()
            if now - before > max(10 * self.beat, self.silence / 4):  # this process itself was held up
                self.beat_at = {host: max(beaten, now) for host, beaten in self.beat_at.items()}
            before = now
            silent = [host for host, beaten in list(self.beat_at.items()) if now - beaten > self.silence]
            if silent and not self.over.is_set():
                names = ", ".join(self.names.get(host, f"machine {host}") for host in silent)
                self.end(
                    FAILURE,
                    f"{socket.gethostname()} has received no sign of life from {names} for "
                    f"{self.silence:g} s (switched off, stopped, or cut off from the network); "
                    "continue from the last checkpoint with --resume",
                )
                return

    def leave_ending(self, problem: Exception) -> None:
        """Let the processes of the other machines end with the error of this one."""
        deadline = time.monotonic() + CONNECT_BEATS * self.beat
        while self.store is None and self.threads[0].is_alive() and time.monotonic() < deadline:
            time.sleep(self.beat / 10)
        if self.store is None or self.over.is_set():
            return
        code, what = FAILURE, f"{type(problem).__name__}: {escape_text(read_first_line(problem))}"
        if isinstance(problem, UserError | LostProcessError):
            code, what = USER_MISTAKE if isinstance(problem, UserError) else FAILURE, str(problem)
        sentence = f"process {self.place.process} on {socket.gethostname()} ended: {what}"
        with contextlib.suppress(RuntimeError):
            self.store.compare_set(self.name_key("ending"), "", f"{self.place.process} {code} {sentence}")
            self.over.set()  # this process ends by itself, whatever the others left
            time.sleep(LINGER_BEATS * self.beat)


def watch_other_hosts() -> contextlib.AbstractContextManager[object]:
    """Watch the other machines of the launch while a block runs; on one machine there is nothing to watch."""
    place = HostPlace.read_environment()
    return contextlib.nullcontext() if place is None else HostWatch(place)
