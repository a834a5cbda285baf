"""What the rehearsals on several hosts share: records of a run, cases and their groups, the table."""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from hosts import NoHostsError

ROUNDING = 2e-4  # of losses, relative: sums in another order
LAYOUT = "{:18} {:11} {:10} {:9} {:>5} {:>6}  {}"


class RehearsalError(Exception):
    """A case did not go as it must."""


@dataclass(frozen=True)
class Result:
    """A row of the table.

    Args:
        hosts: hosts x processes. exact: whether the losses are those that nothing disturbed; "-" where none are
            compared. seconds: from the fault to the end of the last process.
    """

    engine: str
    hosts: str
    exact: str
    seconds: float | None = None
    note: str = ""


def require(condition: object, what: str) -> None:
    """Fail a case unless a condition holds.

    Raises:
        RehearsalError: with what is wrong.
    """
    if not condition:
        raise RehearsalError(what)


def read_records(run_dir: Path) -> list[dict[str, object]]:
    """Return the whole rows of ``metrics.jsonl``; a process that is writing may be in the middle of the last one."""
    file = run_dir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def read_losses(run_dir: Path) -> dict[int, float]:
    """Return the loss of every step."""
    return {int(str(row["step"])): float(str(row["loss"])) for row in read_records(run_dir) if "loss" in row}


def compare_losses(losses: Mapping[int, float], expected: Mapping[int, float]) -> str:
    """Return how exactly losses are the expected ones.

    Raises:
        RehearsalError: when steps are missing, or losses differ by more than rounding.
    """
    require(losses.keys() == expected.keys(), f"steps {sorted(losses)} instead of {sorted(expected)}")
    # NaN stays NaN, unlike in max() of Python
    worst = float(np.max([abs(losses[step] / loss - 1) for step, loss in expected.items()]))
    require(worst <= ROUNDING, f"losses differ by {worst:.1e}: {losses} instead of {dict(expected)}")
    return "yes" if worst == 0 else f"to {worst:.0e}"


R = TypeVar("R")


class Table(Generic[R]):
    """Goes through cases and prints a row for each.

    Args:
        cases: by name. open_rehearsal: makes what a group of cases works with, in a folder.
    """

    def __init__(
        self,
        cases: Mapping[str, Callable[[R], Result]],
        open_rehearsal: Callable[[Path], AbstractContextManager[R]],
        folder: Path,
    ) -> None:
        self.cases, self.open_rehearsal, self.folder = cases, open_rehearsal, folder
        self.opened: list[AbstractContextManager[R]] = []
        self.failed = 0
        self.over = threading.Event()

    def run(self, groups: Sequence[Sequence[str]], parallel: int) -> None:
        """Run groups of cases, so many groups at a time, and end them all at Ctrl-C."""
        print(LAYOUT.format("case", "engine", "hosts", "exact", "ended", "took", "note"), flush=True)
        begin = time.monotonic()
        with ThreadPoolExecutor(parallel) as pool:
            work = [pool.submit(self.run_group, group) for group in groups]
            try:
                for group in work:
                    group.result()
            except BaseException:
                self.over.set()
                for rehearsal in self.opened:
                    rehearsal.__exit__(None, None, None)
                raise
        used = resource.getrusage(resource.RUSAGE_CHILDREN)  # without what was killed
        print(
            f"{sum(map(len, groups))} cases in {time.monotonic() - begin:.0f} s, {self.failed} failed; "
            f"{used.ru_utime + used.ru_stime:.0f} s of processor time, load of the last five minutes "
            f"{os.getloadavg()[1]:.1f} on {os.cpu_count()} cores"
        )

    def run_group(self, group: Sequence[str]) -> None:
        """Run cases one after the other; after one that failed the others get a new rehearsal."""
        waiting = list(group)
        while waiting and not self.over.is_set():
            begin = time.monotonic()
            opened = self.open_rehearsal(self.folder)
            self.opened.append(opened)
            try:
                with opened as rehearsal:
                    while waiting and not self.over.is_set():
                        begin = time.monotonic()
                        self.run_case(waiting[0], rehearsal)
                        del waiting[0]
            except (RehearsalError, NoHostsError) as problem:
                if not self.over.is_set():
                    self.failed += 1
                    took = time.monotonic() - begin
                    print(f"{waiting.pop(0):18} FAILED after {took:.0f} s: {problem}", flush=True)

    def run_case(self, case: str, rehearsal: R) -> None:
        """Run a case and print its row."""
        begin = time.monotonic()
        result = self.cases[case](rehearsal)
        ended = "" if result.seconds is None else f"{result.seconds:.0f}"
        took = f"{time.monotonic() - begin:.0f}"
        row = (case, result.engine, result.hosts, result.exact, ended, took, result.note)
        print(LAYOUT.format(*row), flush=True)


def run_cases(
    description: str | None,
    cases: Mapping[str, Callable[[R], Result]],
    open_rehearsal: Callable[[Path], AbstractContextManager[R]],
    explain_missing: Callable[[], str],
    groups: Sequence[Sequence[str]] | None = None,
    parallel: int = 1,
) -> int:
    """Rehearse the cases that the command line names, or all, and print the table; return the exit status.

    Args:
        open_rehearsal: see ``Table``. explain_missing: why nothing can run here; an empty text where it can.
        groups: of cases that share what they start; default: all are one. parallel: groups at a time, by default.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(cases))
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--folder", type=Path, help="keep run folders and outputs here")
    parser.add_argument("--parallel", type=int, default=parallel, help="cases at a time (%(default)s)")
    options = parser.parse_args()
    if options.list:
        print("\n".join(cases))
        return 0
    if unknown := set(options.cases) - set(cases):
        parser.error(f"there is no case {', '.join(sorted(unknown))}; see --list")
    if reason := explain_missing():
        print(f"skipped: {reason}")
        return 0
    wanted = set(options.cases or cases)
    chosen = [[case for case in group if case in wanted] for group in groups or [list(cases)]]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no host is to outlive the rehearsal
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        table = Table(cases, open_rehearsal, folder)
        try:
            table.run([group for group in chosen if group], options.parallel)
        except KeyboardInterrupt:
            print("interrupted: all hosts are gone")
            return 130
    return int(table.failed > 0)
