"""The first real run: train on real recordings, ask the test splits, probe before and after by both protocols.

    python benchmarks/realdata.py [--out runs/realdata] [key.sub=value ...]

Needs the folder of recordings (UNIAUDIO_REALDATA). Two runs: with the encoder trained, and with it frozen, in
OUT_frozen, for what the answers come to when only the adapter learns. Prints tables and writes OUT/report.html; the
last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from typing import Any, get_args

import torch
import transformers

from uniaudio.commands.evaluate import run_evaluation
from uniaudio.commands.probe import run_probe
from uniaudio.commands.report import Wanted, report_runs
from uniaudio.commands.train import run_training
from uniaudio.config.path_variables import real_root
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_run
from uniaudio.errors import UserError
from uniaudio.evaluate.probing.suite_table import read_references
from uniaudio.evaluate.probing.task_embeddings import Protocol

FILES = {"masked": "probes.json", "xares": "probes_xares.json"}
TOLD = ("metric", "score", "interval", "right", "loss", "examples")


def train(out: Path, overrides: list[str]) -> tuple[RunConfig, float]:
    """Train into a folder and return the config and the minutes."""
    config = load_run("configs/realdata.yaml", [f"output_dir={out}", *overrides])
    started = time.monotonic()
    try:
        code = run_training(config, None)
    except UserError as mistake:
        raise SystemExit(str(mistake)) from mistake
    if code:
        raise SystemExit(code)
    return config, round((time.monotonic() - started) / 60, 1)


def select_figures(answers: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of every evaluation set, those of its labels included."""
    return {
        name: {key: result[key] for key in TOLD}
        | {f"labels {key}": result["labels"][key] for key in ("accuracy", "map", "ece") if "labels" in result}
        for name, result in answers.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/realdata"))
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    if real_root("realdata") is None:
        raise SystemExit("no folder of real recordings: set UNIAUDIO_REALDATA")
    out: Path = arguments.out
    frozen = out.with_name(f"{out.name}_frozen")
    started = time.monotonic()
    config, minutes = train(out, arguments.overrides)
    train(frozen, ["encoders.whisper.train=frozen", *arguments.overrides])
    answers = {
        folder.name: run_evaluation(str(folder), None, folder / "answers.json", None)
        for folder in (out, frozen)
    }
    drawn = f"random:{config.encoders['whisper'].path}"
    suites = {
        protocol: run_probe(
            [str(out), drawn], suite="realdata", protocol=protocol, out=out / FILES[protocol], references=True
        )
        for protocol in get_args(Protocol)
    }
    (before,) = read_references(suites["masked"]).values()
    names = {before.start: "before", before.best: "before, at its best", str(out): "after", drawn: "random"}
    print(f"report: {report_runs([out, frozen], None, Wanted())}")
    result = {
        "training_minutes": minutes,
        "all_minutes": round((time.monotonic() - started) / 60, 1),
        "answers": {name: select_figures(result) for name, result in answers.items()},
        "probes": {
            protocol: {
                task: {names[model]: scores for model, scores in models.items()}
                for task, models in suite["scores"].items()
            }
            for protocol, suite in suites.items()
        },
        "averages": {
            protocol: {names[model]: result for model, result in suite["average"].items()}
            for protocol, suite in suites.items()
        },
        "machine": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
