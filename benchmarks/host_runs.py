"""Launches of a miniature run on two hosts, and what must come of them."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hosts import HERE, Command, Hosts, wait_until
from rehearsal import compare_losses, read_losses, read_records, require

PATIENCE = 600.0  # seconds for a launch
FAULT_SECONDS = 60.0  # until every process has to be gone
ENDLESS = ("stages.0.steps=100000", "train.save_every=40", "train.keep_last=2")
MAKING = threading.Lock()  # of what several cases compare with


class Rehearsal:
    """Two hosts and a miniature run.

    Args:
        folder: of run folders and outputs, for all rehearsals of a call.

    Attributes:
        endless: runs that cases left running for the next one, by engine.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.hosts = folder, Hosts(2, folder)
        self.config = folder / "notes" / "run.yaml"
        self.endless: dict[str, tuple[Path, list[Command]]] = {}

    def __enter__(self) -> Rehearsal:
        self.train_alone()
        self.hosts.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.hosts.close()

    def train_alone(self, kind: str = "notes") -> dict[int, float]:
        """Write a run and train it in one process, once for all cases; return its losses."""
        run_dir = self.folder / f"{kind}-alone"
        with MAKING:
            if not any(row.get("event") == "finished" for row in read_records(run_dir)):
                for folder in (run_dir, self.folder / kind):
                    shutil.rmtree(folder, ignore_errors=True)
                words = [sys.executable, str(HERE / "miniature_run.py"), kind, str(self.folder / kind)]
                done = subprocess.run([*words, str(run_dir)], capture_output=True, text=True)
                require(done.returncode == 0, done.stderr[-2000:])
        return read_losses(run_dir)

    def make_folder(self, name: str) -> Path:
        """Return the path of a run folder; what an earlier call left there is removed."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return self.folder / name

    def launch(
        self,
        engine: str,
        run_dir: Path,
        *overrides: str,
        processes: int = 1,
        machines: Sequence[int] = (0, 1),
        rendezvous: str = "static",
        configs: Sequence[Path] = (),
        environments: Sequence[dict[str, str]] = ({}, {}),
    ) -> list[Command]:
        """Start ``uniaudio launch`` on hosts.

        Args:
            configs, environments: of each host, where they differ.
        """
        commands = []
        for number, host in enumerate(machines):
            config = configs[number] if configs else self.config
            words = ["-m", "uniaudio", "launch", engine, str(config), f"output_dir={run_dir}", *overrides]
            words += ["-n", str(processes)]
            if len(machines) > 1:
                words += ["--machines", str(len(machines)), "--rank", str(number)]
                words += ["--address", f"host{machines[0]}", "--rendezvous", rendezvous]
            commands.append(self.hosts.start(host, words, **environments[number]))
        return commands

    def take_endless(self, engine: str) -> tuple[Path, list[Command]]:
        """Return folder and launches of a run without end that has done its first steps.

        It is one that another case left, or a new one; a case that leaves it running puts it back into ``endless``.
        """
        if engine not in self.endless:
            run_dir = self.make_folder(f"endless-{engine}-{id(self)}")
            commands = self.launch(engine, run_dir, *ENDLESS)
            self.wait_for_step(run_dir, 3, commands)
            self.endless[engine] = run_dir, commands
        return self.endless.pop(engine)

    def finish(self, commands: Sequence[Command], code: int = 0) -> None:
        """Wait for launches and require their exit code."""
        for command in commands:
            ended = command.wait(PATIENCE)
            require(ended == code, f"{command.output} ended with {ended}:\n{command.text[-3000:]}")

    def compare(self, run_dir: Path, expected: Mapping[int, float]) -> str:
        """Return how exactly the losses of a run are the expected ones, and check its checkpoints.

        Raises:
            RehearsalError: when they are not, or a checkpoint was written twice.
        """
        exact = compare_losses(read_losses(run_dir), expected)
        saved = [row["step"] for row in read_records(run_dir) if row.get("event") == "saved"]
        require(len(saved) == len(set(saved)), f"checkpoints written twice: {saved}")
        return exact

    def wait_for(self, condition: Callable[[], bool], what: str, commands: Sequence[Command]) -> None:
        """Wait until something is so while launches run.

        Raises:
            RehearsalError: when a launch ends before, or it takes too long.
        """
        is_so = wait_until(
            lambda: condition() or any(command.is_over() for command in commands),
            PATIENCE,
        )
        over = [command for command in commands if command.is_over()]
        require(is_so is not None and not over, "\n".join([f"not {what}", *(c.text[-2000:] for c in over)]))

    def wait_for_step(self, run_dir: Path, step: int, commands: Sequence[Command]) -> None:
        """Wait until a run has done so many steps."""
        self.wait_for(lambda: max(read_losses(run_dir), default=0) >= step, f"at step {step}", commands)

    def measure_steps(self, run_dir: Path, count: int, commands: Sequence[Command]) -> tuple[float, float]:
        """Return the median seconds of the next so many steps, and the bytes that host 0 sends in one of them."""
        first, sent = max(read_losses(run_dir)) + 1, self.hosts.count_sent_bytes(0)
        self.wait_for_step(run_dir, first + count, commands)
        last, sent = max(read_losses(run_dir)), self.hosts.count_sent_bytes(0) - sent
        rows = [row for row in read_records(run_dir) if "loss" in row and int(str(row["step"])) > first]
        return statistics.median(float(str(row["seconds"])) for row in rows), sent / (last - first + 1)

    def require_end(
        self,
        commands: Sequence[Command],
        what: str,
        since: float,
        code: int = 1,
        limit: float = FAULT_SECONDS,
    ) -> float:
        """Wait until launches and their ranks are gone, and require one sentence.

        Args:
            what: is part of the sentence. since: when the fault was, in monotonic seconds. limit: in seconds from then.

        Returns:
            Seconds from the fault to the end.
        """
        for command in commands:
            ended = command.wait(max(limit + since - time.monotonic(), 0.1))
            seconds = time.monotonic() - since
            where, said = str(command.output), command.text[-3000:]
            require(ended is not None, f"{where} still runs {limit:g} s after the fault:\n{said}")
            require(not command.find_processes(), f"{where}: a process is left")
            require(ended == code, f"{where} ended with {ended} instead of {code}:\n{said}")
            is_said = any(what in line for line in command.sentences)
            require(is_said, f"{where}: no sentence '{what}' in:\n{said}")
            require("Traceback" not in command.text, f"{where}: a traceback:\n{said}")
        return seconds
