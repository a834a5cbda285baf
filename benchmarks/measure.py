"""Measure two sides fairly: a fresh process for every side and run, A B A B A B, the minimum of three.

A benchmark script calls ``main`` with a function that prepares one side in the child process and returns its step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from setting import CASES

from uniaudio import __version__

SIDES = ("stock", "ours")
Step = Callable[
    [], dict[str, float]
]  # one forward and backward; returns `loss` and, if wanted, `*_seconds` of parts
QUICK_CASES = ("1", "30", "mix")
AGREEMENT = 1e-3  # both sides compute the same function at 30 s
QUIET_LOAD = 1.0  # one-minute load average above which figures of a small machine say little
PATIENCE = 180  # seconds to wait for it


def main(
    script: Path, title: str, prepare: Callable[[str, str, int], Step], headline: str, counts: tuple[int, int]
) -> None:
    """Run a benchmark script: the comparison, or with ``--side`` one side in this process.

    Args:
        prepare: ``(side, case, clips) -> step``.
        headline: the figure whose ratio counts: ``seconds`` of the whole step or a part that the step reports.
        counts: clips of a case with one length, clips of the mix.
    """
    arguments = parse(title, counts)
    torch.set_num_threads(arguments.threads)
    if arguments.side:
        step = prepare(arguments.side, arguments.cases[0], arguments.clips)
        print(json.dumps(time_steps(step, arguments.steps)))
        return
    console = Console(width=max(110, Console().width))
    result: dict[str, Any] = {"benchmark": title, "machine": machine(arguments.threads)}
    result["quiet"] = arguments.quick or wait_for_quiet(console)
    result["cases"] = {case: compare(script, case, arguments, headline, console) for case in arguments.cases}
    show(result, headline, console)
    if arguments.plot:
        plot(result, arguments.plot)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    full = result["cases"].get("30")
    if full and full["loss_difference"] > AGREEMENT:
        raise SystemExit(
            f"the sides do not compute the same: their losses at 30 s differ by {full['loss_difference']}"
        )


def parse(title: str, counts: tuple[int, int]) -> argparse.Namespace:
    """Read the command line; ``--quick`` is a test of the script, not a measurement."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--quick", action="store_true", help="one run of few clips, to see that it works")
    parser.add_argument("--cases", nargs="+", choices=CASES, help=f"default: {' '.join(CASES)}")
    parser.add_argument("--runs", type=int, help="fresh processes per side and case (default 3)")
    parser.add_argument("--steps", type=int, default=2, help="timed steps in a process, after one to warm up")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="also write the JSON result to this file")
    parser.add_argument("--plot", type=Path, help="draw the ratio over the clip length into this PNG file")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--clips", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.cases = arguments.cases or (QUICK_CASES if arguments.quick else CASES)
    arguments.runs = arguments.runs or (1 if arguments.quick else 3)
    arguments.counts = (2, 4) if arguments.quick else counts
    return arguments


def time_steps(step: Step, steps: int) -> dict[str, float]:
    """Warm up once, time ``steps`` steps; return the minimum of every figure and the peak memory of this process."""
    step()
    rows = []
    for _ in range(steps):
        started = time.perf_counter()
        row = step()
        rows.append({**row, "seconds": time.perf_counter() - started})
    fastest = {name: min(row[name] for row in rows) for name in rows[0]}
    # Linux counts in KiB. A child inherits the mark of its parent, which holds less than any side: libraries only.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {**fastest, "peak_gib": peak}


def compare(
    script: Path, case: str, arguments: argparse.Namespace, headline: str, console: Console
) -> dict[str, Any]:
    """Alternate the sides in fresh processes and return the minimum of every figure, and the ratios stock / ours."""
    clips = arguments.counts[case == "mix"]
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(arguments.runs):
        for side in SIDES:
            load = os.getloadavg()[0]
            row = child(script, side, case, clips, arguments)
            runs[side].append({**row, "load": load})
            console.print(
                f"clips {case}, run {number + 1}, {side}: {row[headline]:.3f} s, "
                f"{row['peak_gib']:.2f} GiB, loss {row['loss']:.6f}, load before {load:.2f}",
                highlight=False,
            )
    best: dict[str, Any] = {
        side: {name: min(row[name] for row in rows) for name in rows[0] if name != "load"}
        for side, rows in runs.items()
    }
    stock, ours = (best[side] for side in SIDES)
    for side in SIDES:
        best[side]["audio_seconds_per_second"] = best[side]["audio_seconds"] / best[side][headline]
        best[side]["runs"] = [row[headline] for row in runs[side]]
        best[side]["loads"] = [row["load"] for row in runs[side]]
    return {
        **best,
        "clips": clips,
        "times_faster": stock[headline] / ours[headline],
        "times_faster_with_mel": stock["seconds"] / ours["seconds"],
        "times_less_memory": stock["peak_gib"] / ours["peak_gib"],
        "loss_difference": abs(stock["loss"] - ours["loss"]) / max(1.0, abs(stock["loss"])),
    }


def child(script: Path, side: str, case: str, clips: int, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one side in a process of its own and return its figures."""
    threads = str(arguments.threads)
    command = [sys.executable, str(script), "--side", side, "--cases", case, "--clips", str(clips)]
    done = subprocess.run(
        [*command, "--steps", str(arguments.steps), "--threads", threads],
        env={**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"side {side}, clips {case}: ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


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
    """Return where and with which versions this was measured."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    asked = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    commit = subprocess.run(asked, capture_output=True, text=True).stdout.strip()
    return {
        "processor": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": list(os.getloadavg()),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers")},
        "uniaudio": __version__,
        "commit": commit or None,
        "dtype": "float32",
        "optimizer": None,
    }


def show(result: dict[str, Any], headline: str, console: Console) -> None:
    """Print the table: a row for every clip length."""
    facts = result["machine"]
    where = (
        f"{facts['processor']}, {facts['threads']} threads, torch {facts['torch']}, commit {facts['commit']}"
    )
    table = Table(title=f"{result['benchmark']}\n{where}, load {facts['load_before'][0]:.2f}")
    for column in ("clips", "stock s", "ours s", "faster", "with mel", "stock GiB", "ours GiB", "less memory",
                   "stock loss", "ours loss"):  # fmt: skip
        table.add_column(column, justify="right")
    for case, row in result["cases"].items():
        stock, ours = row["stock"], row["ours"]
        table.add_row(
            f"{row['clips']} x {case}{'' if case == 'mix' else ' s'}",
            *(f"{side[headline]:.3f}" for side in (stock, ours)),
            f"{row['times_faster']:.2f}x",
            f"{row['times_faster_with_mel']:.2f}x",
            *(f"{side['peak_gib']:.2f}" for side in (stock, ours)),
            f"{row['times_less_memory']:.2f}x",
            *(f"{side['loss']:.6f}" for side in (stock, ours)),
        )
    console.print(table)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw how many times faster and smaller over the clip length; the mix is a dotted line."""
    from matplotlib.figure import Figure  # only when asked for

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    cases = {case: row for case, row in result["cases"].items() if case != "mix"}
    lengths = [float(case) for case in cases]
    for name, label in (("times_faster", "time"), ("times_less_memory", "peak memory")):
        (line,) = axes.loglog(lengths, [row[name] for row in cases.values()], "o-", label=label)
        if "mix" in result["cases"]:
            axes.axhline(
                result["cases"]["mix"][name], color=line.get_color(), linestyle=":", label=f"{label}, mix"
            )
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set_xticks(lengths, list(cases))
    axes.minorticks_off()
    axes.set(xlabel="seconds of a clip", ylabel="stock / ours", title=result["benchmark"])
    axes.legend()
    figure.savefig(path, dpi=150)
