"""All benchmarks: measured one after another, stored, drawn, and compared with what was stored before.

    python benchmarks/run.py [NAME ...] [--quick] [--runs 3] [--store benchmarks/results] [--figures docs/figures]
                             [--encoder base] [--decoder 0.6B]
    python benchmarks/run.py [NAME ...] --compare
    python benchmarks/run.py run --peer-checkout FOLDER --peer-command "python train.py"

Every benchmark is a script of its own that takes ``--help``. Results of one machine and day share a file in the store;
a figure has moved when the ranges of its old and new runs do not touch and it differs by more than 5 %. Only results of
the same processor, cores, threads and torch release are compared. ``--compare`` measures nothing: it tells what moved
between the newest stored results of this machine and those before. ``--quick`` tries everything out and stores and
draws nothing, unless it is told where.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from measure import machine
from results import Move, Result, history, machine_kind, moved, store_result
from rich.console import Console
from sizes import CHOICES, SIZED
from tables import draw, has_curve, moved_table, summary

from uniaudio.config.path_variables import real_root

HERE = Path(__file__).resolve().parent
BENCHMARKS = {  # what it measures
    "encoder": "bench_encoder.py",
    "decoder": "bench_decoder.py",
    "step": "bench_step.py",
    "real": "bench_real.py",  # the step with real weights, where UNIAUDIO_REALMODELS names their folder
    "questions": "bench_questions.py",
    "loader": "bench_data.py",
    "features": "bench_features.py",
    "fusion": "bench_fusion.py",
    "train": "bench_train.py",  # loop, checkpoints, engines
    "run": "bench_run.py",  # end to end
    "probes": "bench_probes.py",
    "labels": "bench_labels.py",
}


def main() -> None:
    arguments = parse()
    console = Console(width=max(160, Console().width))
    measuring = newest(arguments) if arguments.compare else measured(arguments, console)
    results: list[Result] = []
    moves: list[Move] = []
    against: dict[str, str] = {}
    for result, before in measuring:
        results.append(result)
        if before is not None:
            moves += moved(before, result)
            against[result["benchmark"]] = f"{before['machine']['when']} ({before['machine']['commit']})"
        if arguments.figures and not arguments.compare and has_curve(result):
            arguments.figures.mkdir(parents=True, exist_ok=True)
            draw(result, arguments.figures / f"bench_{result['benchmark'].replace(' ', '_')}.png")
    console.print(summary(results))
    console.print(moved_table(moves, against))
    missing = set(arguments.names) - {kind_of(result["benchmark"]) for result in results}
    if missing and not arguments.compare:
        raise SystemExit(f"failed: {', '.join(name for name in arguments.names if name in missing)}")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="one run of little, to see that it works")
    parser.add_argument("--compare", action="store_true", help="measure nothing, compare what is stored")
    parser.add_argument("--runs", type=int, help="fresh processes per side and case (default 3)")
    parser.add_argument("--threads", type=int, help="of every process (default: all cores; loader: 1)")
    for part, sizes in CHOICES.items():
        parser.add_argument(
            f"--{part}",
            choices=sizes,
            help=f"its size, for {', '.join(n for n, p in SIZED.items() if part in p)}",
        )
    parser.add_argument("--store", type=Path, help="folder of results (default benchmarks/results)")
    parser.add_argument("--figures", type=Path, help="folder of the curves (default docs/figures)")
    parser.add_argument(
        "--peer-checkout", type=Path, help="for `run`: folder in which your peer's command runs"
    )
    parser.add_argument("--peer-command", help="for `run`: see bench_run.py")
    arguments = parser.parse_args()
    for name in arguments.names:
        if name not in BENCHMARKS:
            parser.error(f"there is no benchmark {name}; known: {', '.join(BENCHMARKS)}")
    parts = [part for part in CHOICES if getattr(arguments, part)]
    sizable = [name for name in BENCHMARKS if set(parts) <= set(SIZED.get(name, ()))]
    for name in arguments.names:
        if name not in sizable:
            parser.error(f"{name} takes no size of {' and '.join(parts)}; these do: {', '.join(sizable)}")
    has_models = real_root("realmodels") is not None
    arguments.names = arguments.names or [name for name in sizable if name != "real" or has_models]
    if not arguments.quick:
        arguments.store = arguments.store or HERE / "results"
        arguments.figures = arguments.figures or HERE.parent / "docs/figures"
    if arguments.compare and arguments.store is None:
        parser.error("--compare looks at what was measured in full; leave --quick out")
    return arguments


def measured(arguments: argparse.Namespace, console: Console) -> Iterator[tuple[Result, Result | None]]:
    """Run the benchmarks, store each result, and yield it with the newest one that was stored before."""
    for name in arguments.names:
        console.rule(name)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "result.json"
            done = subprocess.run(
                [sys.executable, str(HERE / BENCHMARKS[name]), *options(name, arguments, out)]
            )
            if done.returncode or not out.is_file():
                console.print(f"[red]{name} ended with code {done.returncode}[/red]")
                continue
            result: Result = json.loads(out.read_text())
        before = None
        if arguments.store is not None:
            before = next(iter(history(arguments.store, result)[-1:]), None)
            console.print(f"stored in {store_result(arguments.store, result)}")
        yield result, before


def options(name: str, arguments: argparse.Namespace, out: Path) -> list[str]:
    """Return the command line of one benchmark."""
    words = ["--out", str(out), *(["--quick"] if arguments.quick else [])]
    for option in ("runs", "threads", *CHOICES):
        if getattr(arguments, option):
            words += [f"--{option}", str(getattr(arguments, option))]
    if name == "run" and arguments.peer_checkout:
        words += [
            "--peer-checkout",
            str(arguments.peer_checkout),
            "--peer-command",
            arguments.peer_command or "",
        ]
    return words


def kind_of(name: str) -> str:
    """Return the benchmark that a result is of: what was measured at other sizes has them behind the name."""
    return name.split()[0]


def newest(arguments: argparse.Namespace) -> Iterator[tuple[Result, Result | None]]:
    """Yield the newest stored results of this machine, each with the one before it."""
    here = machine_kind(machine(1))
    results_of: dict[str, list[Result]] = {}
    for file in sorted(arguments.store.glob("*.json")):
        for name, result in json.loads(file.read_text())["benchmarks"].items():
            if (
                kind_of(name) in arguments.names
                and machine_kind(result["machine"]) == here
                and not result["quick"]
            ):
                results_of.setdefault(name, []).append(result)
    for results in results_of.values():
        latest = max(results, key=lambda result: result["machine"]["when"])
        older = [other for other in history(arguments.store, latest) if other != latest]
        yield latest, older[-1] if older else None


if __name__ == "__main__":
    main()
