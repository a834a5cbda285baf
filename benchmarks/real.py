"""Real models on real audio: the main runs, and comparisons that each change one thing of them.

    python benchmarks/real.py [--only NAME ...] [--list] [--jobs 2] [--out runs/real_models] [--steps 640] [--bf16]
                              [--protocols masked xares] [--quick] [--fetch-models SCRIPT.py]
                              [--fetch-audio SCRIPT.py]

UNIAUDIO_REALMODELS, UNIAUDIO_REALAUDIO and UNIAUDIO_REALDATA name the folders (docs/real-models.md). Every training,
every probe and every set of answers is a cell, a JSON file under OUT/cells: the same command goes on where it was
stopped, also in the middle of a training. OUT/settings.json keeps ``--steps``, ``--bf16`` and ``--quick``, on which
cells depend; a command with other ones is refused. ``--only`` takes names of runs and of questions (``real_runs.py``).
Prints what is done, then tables as Markdown, which are also written to OUT/tables.md. A script that is given is called
with the folder of models or of audio where something is missing in it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cells import Cell, keep_settings, run_cells
from real_runs import ONE_WORDING, QUESTIONS, RUNS, SHORT_STEPS, STAGE_SHARES, Run, shorten, stage_steps
from real_tables import answer_table, close_table, probe_table, read_cells, stage_table, task_table

from uniaudio.config.base_files import read_layers
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.model_spec import write_model_spec
from uniaudio.config.path_variables import REAL_FOLDERS, real_root
from uniaudio.config.search_paths import find_file
from uniaudio.config.strict_yaml import dump_yaml, load_yaml
from uniaudio.run_records import STEP

MODEL = "whisper-base"
BEST = f"{MODEL}?pad_to=30"  # with the silence that Whisper was trained with
SETTINGS = EncoderConfig(**read_layers(find_file("config", "real"), "config")["encoders"]["whisper"])
UNTRAINED = {  # name of the cells -> spec behind the folder of models, and what the tables call it
    "before_best": (BEST, "before, padded to 30 s (its best)"),
    "before": (write_model_spec(MODEL, SETTINGS), "before, as trained from (shared silence)"),
    "before_cut": (MODEL, "before, without silence"),
    "random": (f"random:{MODEL}", "random weights"),
}
PROTOCOLS = ("masked", "xares")
IN_MODELS = re.compile(r"\$\{realmodels\}/([\w.-]+)")
SETS = {
    "realaudio": ("tuxpaint_words", "fillets_cs", "fillets_nl", "langid", "instruments", "drums"),
    "realdata": ("esc10", "fsdd_digits", "fsdd_connected", "ljspeech_mini"),
}
# the last stage ends the run
STAGE_CELLS = dict(zip(STAGE_SHARES, ("stage1", "stage2", "masked"), strict=True))
LAST_ROWS = 10  # of metrics.jsonl: the loss at the end
QUICK = {"steps": 3, "clips": 80, "answers": 2}


@dataclass(frozen=True)
class Plan:
    """Where everything goes and how long it takes.

    Args:
        steps: of the short runs. suite: name or file of the probes. seeds: of every probe. answers: rows of each set in
            the short runs. quick: whether everything is cut down to try the whole way. protocols: of the probes. bf16:
            whether the trainings compute in bfloat16, for processors that multiply in it.
    """

    out: Path
    steps: int
    suite: str
    seeds: int
    answers: int
    quick: bool
    protocols: Sequence[str] = PROTOCOLS
    bf16: bool = False

    @property
    def probes(self) -> dict[str, str]:
        """Name of the cell -> protocol of the probes at the end of every run."""
        return {protocol: protocol for protocol in self.protocols}

    def cells_of(self, run: str, seed: int) -> Path:
        """Return the folder with the cells of a training."""
        return self.out / "cells" / f"{run}_seed{seed}"

    def folder_of(self, run: str, seed: int) -> Path:
        """Return the run folder of a training."""
        return self.out / "runs" / f"{run}_seed{seed}"


def uniaudio(*arguments: str) -> tuple[str, ...]:
    """Return the command line of a command."""
    return (sys.executable, "-m", "uniaudio", *arguments)


def probe_cells(
    plan: Plan,
    folder: Path,
    spec: str,
    needs: tuple[Path, ...],
    names: Mapping[str, str],
    options: Sequence[str] = (),
) -> list[Cell]:
    """Return the cells with a model's probes: name of the cell -> protocol."""
    cells = []
    for name, protocol in names.items():
        command = ("probe", spec, "--suite", plan.suite, "--protocol", protocol, "--seeds", str(plan.seeds))
        cells.append(
            Cell(
                f"{folder.name}/{name}",
                # the untrained encoders are cells of their own
                uniaudio(*command, "--no-references", *options, "--out", "{out}"),
                folder / f"{name}.json",
                needs,
            )
        )
    return cells


def plan_untrained(plan: Plan) -> list[Cell]:
    """Return the probes of the untrained encoder, with and without silence behind the clips, and of random weights."""
    cells = []
    for name, (spec, _) in UNTRAINED.items():
        prefix, _, file = spec.rpartition(":")
        model = f"{prefix}{':' if prefix else ''}{real_root('realmodels')}/{file}"
        cells += probe_cells(plan, plan.out / "cells" / name, model, (), plan.probes)
    return cells


def plan_run(plan: Plan, name: str, run: Run, seed: int) -> list[Cell]:
    """Return the cells of one training: itself, its answers, its probes, and those after its earlier stages."""
    cells, folder = plan.cells_of(name, seed), plan.folder_of(name, seed)
    changes = [change.replace("{one_wording}", str(one_wording(plan.out))) for change in run.overrides]
    changes += shorten(run, plan.steps)
    if plan.bf16:
        changes += ["train.precision=bf16"]
    if plan.quick:
        changes += ["train.log_every=1", f"train.max_steps={QUICK['steps'] * (4 if run.stages else 1)}"]
    settings = (f"output_dir={folder}", f"seed={seed}", "train.tensorboard=false")
    trust = ["--trust-remote-code"] if run.trusted else []
    command = uniaudio("train", run.config, *settings, *changes, *trust, "--resume", "auto")
    train = Cell(
        f"{cells.name}/train", command, cells / "train.json", (), partial(summarise_training, folder)
    )
    limit = ("--max-examples", str(plan.answers)) if run.short or plan.quick else ()
    answers = Cell(
        f"{cells.name}/answers",
        uniaudio("eval", str(folder), *limit, *trust, "--out", "{out}"),
        cells / "answers.json",
        (train.result,),
    )
    probes = probe_cells(plan, cells, str(folder), (train.result,), plan.probes, trust)
    if run.stages:
        ends = list(itertools.accumulate(stage_steps(plan.steps)))
        for number, step in enumerate(ends[1:-1], 1):  # behind listening, and before the end of the run
            checkpoint = str(folder / "checkpoints" / f"step-{step:06d}")
            probes += probe_cells(plan, cells, checkpoint, (train.result,), {f"stage{number}": "masked"})
    return [train, answers, *probes]


def plan_report(plan: Plan, seeds: Sequence[int]) -> Cell:
    """Return the cell that writes the report about the main runs."""
    folders = [plan.folder_of("real", seed) for seed in seeds]
    page = plan.out / "report.html"
    cells = [plan.cells_of("real", seed) for seed in seeds]
    needs = [cell / f"{name}.json" for cell in cells for name in ("train", "answers", "masked")]
    needs += [plan.out / "cells" / name / "masked.json" for name in UNTRAINED]
    probes = [word for file in needs if file.stem == "masked" for word in ("--probes", str(file))]
    answers = [word for file in needs if file.stem == "answers" for word in ("--answers", str(file))]
    return Cell(
        "real/report",
        uniaudio("report", *map(str, folders), "-o", str(page), *probes, *answers),
        plan.out / "cells" / "report.json",
        tuple(needs),
        lambda: {"page": str(page)},
    )


def summarise_training(folder: Path) -> dict[str, Any]:
    """Return minutes, hours of audio, steps and the last losses of a finished run.

    Rows that were logged before an interruption and again after it count once, by their step.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = list({row["step"]: row for row in lines if "loss" in row}.values())
    losses = [row["loss"] for row in rows[-LAST_ROWS:] if row["loss"] is not None]
    return {
        "steps": rows[-1]["step"],
        "minutes": sum(row["seconds"] for row in rows) / 60,
        "audio_hours": sum(row["audio_seconds"] for row in rows) / 3600,
        "loss": statistics.mean(losses),
    }


def one_wording(out: Path) -> Path:
    """Write the recipes of ``ONE_WORDING`` with templates of one wording each, where missing; return their folder."""
    folder = out / "one_wording"
    for name in ONE_WORDING:
        recipe = folder / f"{name}.yaml"
        if recipe.is_file():
            continue
        (folder / "templates").mkdir(parents=True, exist_ok=True)
        content = load_yaml(find_file("recipe", name))
        for kind in sorted({kind for entry in content["train"] for kind in as_list(entry["template"])}):
            template = load_yaml(find_file("template", kind))
            template["prompts"] = template["prompts"][:1]
            (folder / "templates" / f"{kind}.yaml").write_text(dump_yaml(template))
        recipe.write_text(dump_yaml(content))
    return folder


def as_list(value: str | list[str]) -> list[str]:
    """Return one or several names as a list."""
    return [value] if isinstance(value, str) else value


def quick_suite(out: Path) -> str:
    """Write the suite with a few clips of one trained and one unseen set, and return its file."""
    file = out / "realaudio_quick.yaml"
    few: dict[str, Any] = dict.fromkeys(load_yaml(find_file("suite", "realaudio"))["tasks"])
    few |= {name: {"max_clips": QUICK["clips"]} for name in ("esc10", "digits")}
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(dump_yaml({"base": "realaudio", "suite": file.stem, "tasks": few}))
    return str(file)


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


def make_plan(plan: Plan, runs: Sequence[str]) -> list[Cell]:
    """Return all cells of some runs in the order in which they are run: first seeds first."""
    untrained = plan_untrained(plan)
    padded = [cell for cell in untrained if cell.name.startswith("before_best/")]  # hours: they come last
    cells = [cell for cell in untrained if cell not in padded]
    most = max(len(RUNS[name].seeds) for name in runs)
    for place in range(most):
        for name in runs:
            seeds = RUNS[name].seeds
            if place < len(seeds):
                cells += plan_run(plan, name, RUNS[name], seeds[place])
    report = [plan_report(plan, RUNS["real"].seeds)] if "real" in runs else []
    return [*cells, *report, *padded]


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


def write_tables(plan: Plan) -> str:
    """Return all tables as Markdown: one section for every question that has results."""
    folders = {name: [plan.cells_of(name, seed) for seed in run.seeds] for name, run in RUNS.items()}
    untrained = {shown: [plan.out / "cells" / name] for name, (_, shown) in UNTRAINED.items()}
    sections = []
    for key, question in QUESTIONS.items():
        rows = {shown: folders[name] for shown, name in question.arms.items()}
        trained = sum(bool(read_cells(cells, "train")) for cells in rows.values())
        if trained < (1 if key == "main" else 2):  # nothing to compare yet
            continue
        section = [f"### ({key}) {question.title}", answer_table(rows)]
        for protocol in PROTOCOLS:
            start = next(iter(read_cells([plan.out / "cells" / "before_best"], protocol)), None)
            section += [
                f"Probes, protocol `{protocol}`:",
                probe_table({**untrained, **rows}, protocol, start),
            ]
        for probe in ("knn", "linear"):
            section += [
                f"By set, {probe}, protocol `masked`:",
                task_table({**untrained, **rows}, "masked", probe),
            ]
        if question.references:
            for probe in ("knn", "linear"):
                section += [
                    f"Beside the best of {' and '.join(question.references)}, {probe}:",
                    close_table(rows, question.references, "masked", probe),
                ]
        if any(RUNS[name].stages for name in question.arms.values()):
            section += [
                "Linear probes after each stage:",
                stage_table(rows, STAGE_CELLS, "linear"),
            ]
        sections.append("\n\n".join(section))
    return "\n\n".join(sections)


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
    raise SystemExit(code)


if __name__ == "__main__":
    main()
