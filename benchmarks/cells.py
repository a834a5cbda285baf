"""Cells: commands that each leave one JSON file, so that a long plan goes on where it was stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from uniaudio.train.memory_allocator import find_jemalloc

POLL_SECONDS = 0.2
STOPPED = 75  # the exit code of a training that was stopped and can go on


@dataclass(frozen=True)
class Cell:
    """One command and the JSON file that says it is done.

    Args:
        name: unique, such as ``main_seed0/train``.
        command: arguments of a process; ``{out}`` in them is the file that it has to write.
        result: where that file goes once the process has ended well.
        needs: results of other cells that must be there before.
        summarise: makes the result where the command does not write it.
    """

    name: str
    command: tuple[str, ...]
    result: Path
    needs: tuple[Path, ...] = ()
    summarise: Callable[[], dict[str, Any]] | None = None

    @property
    def is_done(self) -> bool:
        """Whether the result is there."""
        return self.result.is_file()

    @property
    def is_ready(self) -> bool:
        """Whether all results that it needs are there."""
        return all(path.is_file() for path in self.needs)

    @property
    def unfinished(self) -> Path:
        """What the command writes until it has ended well."""
        return self.result.with_suffix(".part")

    @property
    def log(self) -> Path:
        """What the command printed."""
        return self.result.with_suffix(".log")

    def start(self, threads: int) -> subprocess.Popen[bytes]:
        """Start the command, its output in the log."""
        self.result.parent.mkdir(parents=True, exist_ok=True)
        environment = {
            "OMP_WAIT_POLICY": "passive",  # waiting threads that spin take the cores from those that work
            **preload_allocator(),
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [part.replace("{out}", str(self.unfinished)) for part in self.command]
        with self.log.open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)

    def read_unfinished(self) -> dict[str, Any]:
        """Return what the command wrote."""
        result: dict[str, Any] = json.loads(self.unfinished.read_text())
        return result

    def finish(self, seconds: float) -> None:
        """Keep the result, with the seconds that the last process took."""
        summarise = self.summarise or self.read_unfinished
        result = {**summarise(), "process_seconds": round(seconds, 1)}
        self.unfinished.write_text(json.dumps(result, indent=1))
        self.unfinished.rename(self.result)


def preload_allocator() -> dict[str, str]:
    """Return the variable by which processes use jemalloc where it is installed: long runs are twice as fast."""
    library = find_jemalloc()
    return {} if library is None else {"LD_PRELOAD": str(library)}


def keep_settings(file: Path, settings: Mapping[str, Any], write: bool = True) -> None:
    """Keep the settings that all cells of a folder depend on, and refuse to add cells that were made with others.

    A folder whose cells are older than this file takes the first settings that it is continued with.

    Args:
        file: JSON beside the cells. settings: plain values. write: False compares them only.

    Raises:
        SystemExit: where the file holds other settings.
    """
    if file.is_file():
        kept = json.loads(file.read_text())
        if kept != settings:
            raise SystemExit(
                f"{file.parent} holds results with {describe_settings(kept)}, not {describe_settings(settings)}: "
                "give the same options, or another --out"
            )
    elif write:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        unfinished.write_text(json.dumps(settings, indent=1) + "\n")
        unfinished.rename(file)


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Return settings on one line, such as ``steps=640, bf16=false``."""
    return ", ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())


def run_cells(cells: Sequence[Cell], jobs: int, threads: int, report: Callable[[str], None]) -> int:
    """Run what is not done, ``jobs`` at a time, in the order of the list; return an exit code.

    A cell that fails does not stop those that do not need it. Interrupted (Ctrl-C, SIGTERM), the running commands are
    stopped and waited for: a training saves its state.

    Returns:
        0 when all is done, 75 when it was stopped and can go on, 1 when a cell failed.
    """
    waiting = [cell for cell in cells if not cell.is_done]
    running: dict[subprocess.Popen[bytes], tuple[Cell, float]] = {}
    failed: list[Cell] = []
    interrupted = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True
        for process in running:
            process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while True:
            ready = [cell for cell in waiting if cell.is_ready]
            while ready and len(running) < jobs and not interrupted:
                cell = ready.pop(0)
                waiting.remove(cell)
                report(f"{cell.name}: started")
                running[cell.start(threads)] = (cell, time.monotonic())
            if not running:
                break
            time.sleep(POLL_SECONDS)
            for process in [process for process in running if process.poll() is not None]:
                cell, started = running.pop(process)
                seconds = time.monotonic() - started
                if process.returncode == 0:
                    cell.finish(seconds)
                    report(f"{cell.name}: done in {seconds / 60:.1f} minutes")
                elif process.returncode == STOPPED or interrupted:
                    interrupted = True
                    report(f"{cell.name}: stopped")
                else:
                    failed.append(cell)
                    report(f"{cell.name}: failed, see {cell.log}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if interrupted:
        return STOPPED
    for cell in waiting:
        report(f"{cell.name}: left out, it needs what failed")
    return 1 if failed or waiting else 0
