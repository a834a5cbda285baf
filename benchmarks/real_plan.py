"""The commands of real runs: probes of the untrained encoder, and the training, answers and probes of every run."""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cells import Cell
from real_runs import ONE_WORDING, RUNS, STAGE_SHARES, Run, shorten, stage_steps

from uniaudio.config.base_files import read_layers
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.model_spec import write_model_spec
from uniaudio.config.path_variables import real_root
from uniaudio.config.search_paths import find_file
from uniaudio.config.strict_yaml import dump_yaml, load_yaml

MODEL = "whisper-base"
BEST = f"{MODEL}?pad_to=30"  # with the silence that Whisper was trained with
SETTINGS = EncoderConfig(**read_layers(find_file("config", "real"), "config")["encoders"]["whisper"])
UNTRAINED = {  # name of the cells -> spec behind the folder of models, and what the tables call it
    "before_best": (BEST, "before, padded to 30 s (its best)"),
    "before": (write_model_spec(MODEL, SETTINGS), "before, as trained from (shared silence)"),
    "before_cut": (MODEL, "before, without silence"),
    "before_decoder": (
        write_model_spec(MODEL, SETTINGS.model_copy(update={"tail_frames": 25, "keep_tail": True})),
        "before, as trained from with Whisper's own decoder",
    ),
    "random": (f"random:{MODEL}", "random weights"),
}
PROTOCOLS = ("masked", "xares")
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
