"""Measure sides fairly: a fresh process for every side and run, in turns (A B A B A B), and the best of three.

A benchmark script describes its cases and sides in a ``Benchmark`` and calls ``main``, which starts the script again
for every run of a side. ``results.py`` says what a result looks like.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from results import AGREEMENT, Result, disagreement, gathered
from rich.console import Console
from sizes import CHOICES, SIZED, Sizes
from tables import draw, has_curve, one_table

from uniaudio import __version__

# one forward and backward; returns `loss` and, if wanted, `*_seconds` of parts
Step = Callable[[], dict[str, float]]
QUIET_LOAD = 1.0  # one-minute load average above which figures of a small machine say little
PATIENCE = 180  # seconds to wait for it
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
CHECKOUT = "peer (your checkout)"  # the side that a command of the user's own runs
RATIOS = {"times_faster": "seconds", "times_less_memory": "peak_gib"}


@dataclass(frozen=True)
class Run:
    """One run of one side.

    Args:
        shared: what ``Benchmark.prepare`` wrote, the same for all runs. scratch: an empty folder of this run's own.
    """

    case: str
    side: str
    quick: bool
    steps: int
    shared: Path
    scratch: Path
    sizes: Sizes = field(default_factory=Sizes)


@dataclass(frozen=True)
class Benchmark:
    """What a script measures.

    Args:
        cases: case -> sides in the order of their turns; the first one is what the others are compared with.
        figures: measures one side, in a process of its own; None from a process that has nothing to tell.
        headline: the figure that a side is named by, its seconds or its rate. ratios: name -> figure of both sides.
        same: case -> sides that compute the same function, so that ``loss`` (or ``same_figure``) must agree, relative
            to its size to within ``agreement``.
        steps: timed steps of a run, and those of a quick one. runs: of a side.
        prepare: writes into a folder what all runs share. threads: of every run; None: all cores.
        launch: side -> what starts Python in its place, and threads; None: nothing special.
        whole: whether the wall time and the largest process of a whole run, start-up included, are figures.
        checkout: the case in which a peer's checkout may take part.
    """

    name: str
    title: str
    cases: Mapping[str, Sequence[str]]
    figures: Callable[[Run], Mapping[str, float] | None]
    headline: str = "seconds"
    ratios: Mapping[str, str] = field(default_factory=lambda: dict(RATIOS))
    same: Mapping[str, Sequence[str]] = field(default_factory=dict)
    same_figure: str = "loss"
    agreement: float = AGREEMENT
    quick_cases: Sequence[str] | None = None
    steps: tuple[int, int] = (2, 1)
    runs: int = 3
    prepare: Callable[[Path, bool], None] | None = None
    threads: int | None = None
    launch: Callable[[str], tuple[list[str], int] | None] | None = None
    whole: bool = False
    checkout: str | None = None


def main(benchmark: Benchmark) -> None:
    """Run a benchmark script: the comparison, or with ``--side`` one side in this process."""
    script = Path(sys.argv[0]).resolve()
    arguments = parse(benchmark)
    torch.set_num_threads(arguments.threads)
    if arguments.prepare and benchmark.prepare is not None:
        benchmark.prepare(arguments.shared, arguments.quick)
        return
    if arguments.side:
        run_side(benchmark, arguments)
        return
    console = Console(width=max(140, Console().width))
    quiet = not arguments.quick and wait_for_quiet(console)
    facts = machine(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        if benchmark.prepare is not None:  # in a process of its own: this one is to stay small, see `spawn`
            words = ["--prepare", "--shared", folder, *(["--quick"] if arguments.quick else [])]
            spawn([sys.executable, str(script), *words], OFFLINE, "preparing")
        cases = {
            case: in_turns(script, benchmark, case, Path(folder), arguments, console)
            for case in arguments.cases
        }
    result: Result = {
        "benchmark": named(benchmark, arguments),
        "title": titled(benchmark, arguments),
        "machine": facts,
        "quick": arguments.quick,
        "quiet": quiet,
        "settings": {"steps": arguments.steps},
        "headline": benchmark.headline,
        "cases": cases,
    }
    console.print(one_table(result))
    if arguments.plot and has_curve(result):
        draw(result, arguments.plot)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    refuse_disagreement(benchmark, result)


def chosen(benchmark: Benchmark, arguments: argparse.Namespace) -> dict[str, str]:
    """Return the sizes that this call takes, of the parts whose size can be chosen."""
    return {part: getattr(arguments, part) for part in SIZED.get(benchmark.name, ())}


def named(benchmark: Benchmark, arguments: argparse.Namespace) -> str:
    """Return the name of the benchmark, with the sizes where they are not the usual ones."""
    sizes = chosen(benchmark, arguments)
    if Sizes(**sizes) == Sizes():
        return benchmark.name
    return f"{benchmark.name} {'+'.join(sizes.values())}"


def titled(benchmark: Benchmark, arguments: argparse.Namespace) -> str:
    """Return the title, with the sizes where there are some to choose."""
    sizes = chosen(benchmark, arguments).values()
    return f"{benchmark.title} ({' + '.join(sizes)})" if sizes else benchmark.title


def refuse_disagreement(benchmark: Benchmark, result: Result) -> None:
    """End with an error where sides that must compute the same do not."""
    for case, names in benchmark.same.items():
        if case not in result["cases"]:
            continue
        apart = disagreement(result["cases"][case], names, benchmark.same_figure)
        if not apart <= benchmark.agreement:
            raise SystemExit(
                f"{benchmark.name}, {case}: {', '.join(names)} do not compute the same: "
                f"their {benchmark.same_figure} differs by {apart:.2g}"
            )


def parse(benchmark: Benchmark) -> argparse.Namespace:
    """Read the command line; ``--quick`` is a test of the script, not a measurement."""
    script = sys.modules["__main__"].__doc__
    parser = argparse.ArgumentParser(description=script, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--quick", action="store_true", help="one run of little, to see that it works")
    parser.add_argument(
        "--cases", nargs="+", choices=list(benchmark.cases), metavar="CASE", help="default: all"
    )
    parser.add_argument(
        "--runs", type=int, help=f"fresh processes per side and case (default {benchmark.runs})"
    )
    parser.add_argument("--steps", type=int, help=f"timed steps in a process (default {benchmark.steps[0]})")
    parser.add_argument("--threads", type=int, default=benchmark.threads or cores)
    parser.add_argument("--out", type=Path, help="also write the JSON result to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratio over the clip length into this PNG file")
    for part in SIZED.get(benchmark.name, ()):
        usual = getattr(Sizes(), part)
        parser.add_argument(
            f"--{part}", choices=CHOICES[part], default=usual, help=f"its size (default {usual})"
        )
    if benchmark.checkout:
        parser.add_argument("--peer-checkout", type=Path, help="folder in which your peer's command runs")
        parser.add_argument("--peer-command", help="trains the peer on the data in $UNIAUDIO_BENCH_DATA")
    for name, kind in (("--side", str), ("--shared", Path), ("--scratch", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if benchmark.checkout and bool(arguments.peer_checkout) != bool(arguments.peer_command):
        parser.error("--peer-checkout and --peer-command belong together")
    if benchmark.checkout and arguments.peer_checkout and not arguments.peer_checkout.is_dir():
        parser.error(f"--peer-checkout: there is no folder {arguments.peer_checkout}")
    quick = benchmark.quick_cases if arguments.quick else None
    arguments.cases = arguments.cases or list(quick or benchmark.cases)
    arguments.runs = arguments.runs or (1 if arguments.quick else benchmark.runs)
    arguments.steps = arguments.steps or benchmark.steps[arguments.quick]
    return arguments


def run_side(benchmark: Benchmark, arguments: argparse.Namespace) -> None:
    """Measure one side in this process and print its figures as the last line."""
    figures = benchmark.figures(
        Run(
            arguments.cases[0],
            arguments.side,
            arguments.quick,
            arguments.steps,
            arguments.shared,
            arguments.scratch,
            Sizes(**chosen(benchmark, arguments)),
        )
    )
    if figures is not None:
        print(json.dumps(dict(figures)), flush=True)


def in_turns(
    script: Path,
    benchmark: Benchmark,
    case: str,
    shared: Path,
    arguments: argparse.Namespace,
    console: Console,
) -> Result:
    """Alternate the sides of a case in fresh processes and return their figures."""
    sides = list(benchmark.cases[case])
    if case == benchmark.checkout and arguments.peer_checkout:
        sides.insert(len(sides) - 1, CHECKOUT)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(arguments.runs):
        for side in sides:
            load = os.getloadavg()[0]
            if side == CHECKOUT:
                row = checkout_run(shared, arguments)
            else:
                row = child(script, benchmark, case, side, shared, arguments)
            runs[side].append({**row, "load": load})
            line = ", ".join(f"{name.replace('_', ' ')} {value:,.4g}" for name, value in row.items())
            console.print(f"{case}, run {number + 1}, {side}: {line}, load {load:.2f}", highlight=False)
    return gathered(runs, benchmark.ratios)


def child(
    script: Path, benchmark: Benchmark, case: str, side: str, shared: Path, arguments: argparse.Namespace
) -> dict[str, float]:
    """Run one side in a process of its own (or those of its launcher) and return its figures."""
    special = benchmark.launch(side) if benchmark.launch is not None else None
    launcher, threads = special or ([sys.executable], arguments.threads)
    options = {"side": side, "cases": case, "steps": arguments.steps, "threads": threads, "shared": shared}
    options |= chosen(benchmark, arguments)
    with tempfile.TemporaryDirectory(dir=shared) as scratch:
        words = [f"--{name}={value}" for name, value in {**options, "scratch": scratch}.items()]
        command = [*launcher, str(script), *words, *(["--quick"] if arguments.quick else [])]
        text, whole = spawn(command, {**OFFLINE, "OMP_NUM_THREADS": str(threads)}, f"{case}, side {side}")
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{case}, side {side}: printed nothing\n{text[-2000:]}")
    row: dict[str, float] = json.loads(lines[-1])
    return {**row, **whole} if benchmark.whole else row


def checkout_run(shared: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Run the user's own command over the same data and return its wall time and largest process."""
    environment = {"OMP_NUM_THREADS": str(arguments.threads), "UNIAUDIO_BENCH_DATA": str(shared)}
    command = shlex.split(arguments.peer_command)
    _, whole = spawn(command, environment, CHECKOUT, arguments.peer_checkout)
    return whole


def spawn(
    command: Sequence[str], environment: Mapping[str, str], what: str, folder: Path | None = None
) -> tuple[str, dict[str, float]]:
    """Run a command to its end and return what it printed, its wall time and the memory of its largest process.

    Linux lets a process inherit the mark of the one that starts it, so no peak is below that of this process.

    Raises:
        SystemExit: when it cannot be started or fails.
    """
    surroundings = {**os.environ, **environment}
    started = time.perf_counter()
    try:
        process = subprocess.Popen(
            command, env=surroundings, cwd=folder, stdout=subprocess.PIPE, text=True, errors="replace"
        )
    except OSError as problem:
        raise SystemExit(f"{what}: {command[0]} cannot be started ({problem})") from problem
    with process:
        text = process.stdout.read() if process.stdout else ""
        # of the process and its descendants, which the standard library does not tell apart by child
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode == -signal.SIGKILL:
        raise SystemExit(
            f"{what}: was killed, as it happens where memory does not suffice; take smaller sizes"
        )
    if process.returncode:
        raise SystemExit(f"{what}: ended with code {process.returncode}\n{text[-2000:]}")
    # Linux counts in KiB
    return text, {"wall_seconds": time.perf_counter() - started, "peak_gib": usage.ru_maxrss / 2**20}


def time_steps(step: Step, steps: int) -> dict[str, float]:
    """Warm up once, time ``steps`` steps; return the minimum of every figure and the peak memory of this process."""
    step()
    rows = []
    for _ in range(steps):
        started = time.perf_counter()
        row = step()
        rows.append({**row, "seconds": time.perf_counter() - started})
    fastest = {name: min(row[name] for row in rows) for name in rows[0]}
    if "audio_seconds" in fastest:
        fastest["audio_seconds_per_second"] = fastest["audio_seconds"] / fastest["seconds"]
    return {**fastest, "peak_gib": peak_gib()}


def peak_gib() -> float:
    """Return the peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB


def wait_for_quiet(console: Console) -> bool:
    """Wait a few minutes for other work on the machine to end; return whether it did."""
    for left in range(PATIENCE, -1, -10):
        load = os.getloadavg()[0]
        if load <= QUIET_LOAD:
            return True
        console.print(
            f"load average {load:.2f}: waiting for a quiet machine, {left} s at most", highlight=False
        )
        time.sleep(10 if left else 0)
    console.print("[yellow]the machine is not quiet: take the figures with care[/yellow]")
    return False


def machine(threads: int) -> dict[str, Any]:
    """Return where, when and with which versions this was measured."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except FileNotFoundError:  # there is no git
        commit = ""
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": list(os.getloadavg()),
        "when": datetime.now().isoformat(timespec="seconds"),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
        "uniaudio": __version__,
        "commit": commit or None,
        "dtype": "float32",
    }
