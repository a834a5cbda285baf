"""Real models on real audio: the main runs, and comparisons that each change one thing of them.

    python benchmarks/real.py [--only NAME ...] [--list] [--jobs 2] [--out runs/real_models] [--steps 640] [--bf16]
                              [--protocols masked xares] [--quick] [--fetch-models SCRIPT.py]
                              [--fetch-audio SCRIPT.py]

UNIAUDIO_REALMODELS, UNIAUDIO_REALAUDIO and UNIAUDIO_REALDATA name the folders (docs/real-models.md). Every training,
every probe and every set of answers is a cell, a JSON file under OUT/cells: the same command goes on where it was
stopped, also in the middle of a training. OUT/settings.json keeps ``--steps``, ``--bf16`` and ``--quick``, on which
cells depend; a command with other ones is refused. ``--only`` takes names of runs and of questions (``real_runs.py``).
Prints what is done, then tables as Markdown, which are also written to OUT/tables.md, and draws OUT/questions.png. A
script that is given is called with the folder of models or of audio where something is missing in it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from cells import Cell, keep_settings, run_cells
from real_plan import PROTOCOLS, QUICK, Plan, make_plan, quick_suite
from real_report import draw_figures, write_tables
from real_runs import QUESTIONS, RUNS, SHORT_STEPS

from uniaudio.config.base_files import read_layers
from uniaudio.config.path_variables import REAL_FOLDERS, real_root
from uniaudio.config.search_paths import find_file
from uniaudio.config.strict_yaml import dump_yaml
from uniaudio.run_records import STEP

IN_MODELS = re.compile(r"\$\{realmodels\}/([\w.-]+)")
SETS = {
    "realaudio": ("tuxpaint_words", "fillets_cs", "fillets_nl", "langid", "instruments", "drums"),
    "realdata": ("esc10", "fsdd_digits", "fsdd_connected", "ljspeech_mini"),
}


def choose_runs(names: Sequence[str]) -> list[str]:
    """Return the runs that names of runs and of questions stand for; those of a night for no name.

    Raises:
        SystemExit: for a name that is neither.
    """
    names = names or [key for key, question in QUESTIONS.items() if question.nightly]
    chosen: dict[str, None] = {}
    for name in names:
        if name not in QUESTIONS and name not in RUNS:
            raise SystemExit(f"--only {name}: questions are {', '.join(QUESTIONS)}, runs {', '.join(RUNS)}")
        chosen |= dict.fromkeys(QUESTIONS[name].arms.values() if name in QUESTIONS else [name])
    return list(chosen)


def describe_state(plan: Plan, cell: Cell) -> str:
    """Return whether a cell is done, or how far a training has come."""
    if cell.is_done:
        return "done"
    steps = [
        int(folder.name.removeprefix("step-"))
        for folder in (plan.out / "runs" / cell.name.split("/")[0] / "checkpoints").glob("step-*")
        if STEP.fullmatch(folder.name)
    ]
    if cell.name.endswith("/train") and steps:
        return f"stopped after step {max(steps)}"
    return "to do" if cell.is_ready else "waits for others"


def missing_folders(name: str, runs: Sequence[str]) -> list[str]:
    """Return what some runs need and a folder does not hold.

    Args:
        name: of the folder, as in ``REAL_FOLDERS``.

    Raises:
        SystemExit: when no folder is named.
    """
    root = real_root(name)
    if root is None:
        variable, content = REAL_FOLDERS[name]
        raise SystemExit(f"no folder of {content}: set {variable} (docs/real-models.md)")
    if name == "realmodels":
        texts = [change for run in runs for change in RUNS[run].overrides]
        texts += [dump_yaml(read_layers(find_file("config", RUNS[run].config), "config")) for run in runs]
        needed = sorted({folder for text in texts for folder in IN_MODELS.findall(text)})
        return [folder for folder in needed if not (root / folder / "config.json").is_file()]
    return [folder for folder in SETS[name] if not (root / folder / "manifest.jsonl").is_file()]


def fetch_missing(runs: Sequence[str], scripts: Mapping[str, Path | None]) -> None:
    """Let scripts fill folders that lack something, and refuse to start where something is missing still.

    Args:
        scripts: name of the folder -> Python script that takes it as its argument, or None.

    Raises:
        SystemExit: naming what is missing.
    """
    for name, (variable, content) in REAL_FOLDERS.items():
        script = scripts.get(name)
        if missing_folders(name, runs) and script is not None:
            subprocess.run([sys.executable, str(script), str(real_root(name))], check=True)
        if missing := missing_folders(name, runs):
            raise SystemExit(
                f"{content}: {real_root(name)} ({variable}) holds no {', '.join(missing)} (docs/real-models.md)"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/real_models"))
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="runs or questions; default: main and a to g"
    )
    parser.add_argument("--list", action="store_true", help="print the plan and what is done, run nothing")
    parser.add_argument(
        "--jobs", type=int, default=2, help="commands at a time, each on its share of the cores"
    )
    parser.add_argument("--steps", type=int, default=SHORT_STEPS, help="optimizer steps of the short runs")
    parser.add_argument(
        "--bf16", action="store_true", help="train in bfloat16 (AVX512-BF16 or AMX, faster there)"
    )
    parser.add_argument("--protocols", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, help="of the probes")
    parser.add_argument("--quick", action="store_true", help="try the whole way with a few steps and clips")
    parser.add_argument("--fetch-models", type=Path, metavar="SCRIPT", help="fills the folder of models")
    parser.add_argument("--fetch-audio", type=Path, metavar="SCRIPT", help="fills the folder of audio sets")
    arguments = parser.parse_args()
    runs = choose_runs(arguments.only)
    fetch_missing(runs, {"realmodels": arguments.fetch_models, "realaudio": arguments.fetch_audio})
    out: Path = arguments.out.absolute()
    quick = arguments.quick
    steps = QUICK["steps"] if quick else arguments.steps
    settings = {"steps": steps, "bf16": arguments.bf16, "quick": quick}
    keep_settings(out / "settings.json", settings, write=not arguments.list)
    plan = Plan(
        out,
        steps,
        quick_suite(out) if quick else "realaudio",
        1 if quick else 3,
        QUICK["answers"] if quick else 80,
        quick,
        arguments.protocols,
        arguments.bf16,
    )
    cells = make_plan(plan, runs)
    if arguments.list:
        print("\n".join(f"{describe_state(plan, cell):24} {cell.name}" for cell in cells))
        return
    threads = max(1, len(os.sched_getaffinity(0)) // arguments.jobs)
    code = run_cells(cells, arguments.jobs, threads, partial(print, flush=True))
    tables = write_tables(plan)
    (out / "tables.md").write_text(tables + "\n")
    print(tables)
    draw_figures(plan)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
