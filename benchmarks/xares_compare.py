"""X-ARES from its package beside ``uniaudio probe --protocol xares``, on the same clips and the same weights.

    UNIAUDIO_XARES=PYTHON python benchmarks/xares_compare.py MODEL ... [--suite realdata] [--tasks NAME ...] [--seeds 3]

``UNIAUDIO_XARES`` is a Python of an environment with the package: ``pip install xares "torch==2.8.*"
"torchaudio==2.8.*"`` (later torchaudio reads no file without FFmpeg). Every model is exported with ``--to xares``; the
clips of the suite's tasks of kind ``clip``, decoded and at 16 kHz, are written as X-ARES keeps its own (tars of audio
and JSON), and ``python -m xares.run`` encodes and scores them. kNN must agree to the last digit; the probe that X-ARES
calls MLP starts and shuffles by chance, so its mean and spread over seeds are compared. The last line is the result as
JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from measure import machine
from rich.console import Console
from rich.table import Table

from uniaudio.build.encoders import load_encoder
from uniaudio.commands.export import export_checkpoint
from uniaudio.config.path_variables import real_root
from uniaudio.evaluate.probing.suite import load_suite
from uniaudio.evaluate.probing.suite_run import read_tasks, run_suite
from uniaudio.evaluate.probing.task_embeddings import hold_clips
from uniaudio.evaluate.probing.task_rows import TaskRows
from uniaudio.evaluate.probing.xares import SEED
from uniaudio.types import SAMPLE_RATE

PYTHON = "UNIAUDIO_XARES"  # environment variable
ENTRY_FILE = "uniaudio_encoder.py"  # what the export for X-ARES writes beside the encoder
VERSIONS = (
    "import json; from importlib.metadata import version as v; print(json.dumps({n: v(n) for n in %r}))"
)
TASK = '''"""Written by benchmarks/xares_compare.py."""

from xares.task import TaskConfig


def read_class(sample):
    return sample["class"]


def made_config(encoder):
    config = TaskConfig(encoder=encoder, env_root="env", label_processor=read_class, **{settings!r})
    config.ckpt_dir_name = "seed_{seed}"
    return config
'''


def write_tars(rows: TaskRows, folder: Path) -> None:
    """Write the clips of every split or fold, in their order, as X-ARES reads them, and its mark that all are there."""
    assert rows.clips is not None
    folder.mkdir(parents=True)
    classes = rows.class_index()
    prefix = "wds-audio-fold-" if rows.task.folds else ""
    for part, members in rows.parts.items():
        with tarfile.open(folder / f"{prefix}{part}-000000.tar", "w") as tar:
            for number in members:
                audio = io.BytesIO()
                soundfile.write(audio, rows.clips[number], SAMPLE_RATE, format="WAV", subtype="PCM_16")
                answer = json.dumps({"class": classes[rows.answers[number]]}).encode()
                for suffix, data in (("wav", audio.getvalue()), ("json", answer)):
                    member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    (folder / ".audio_tar_ready").touch()


def write_task(rows: TaskRows, seed: int, file: Path) -> None:
    """Write the module that describes a task to X-ARES, for one seed of its probe."""
    task = rows.task
    splits: dict[str, Any] = {
        "train_split": task.train,
        "valid_split": task.valid or task.test,
        "test_split": task.test,
    }
    settings = {
        "name": rows.name,
        "formal_name": f"{rows.name}, seed {seed}",
        "seed": seed,
        "output_dim": len(rows.classes),
        "eval_weight": round(rows.weight),
        "epochs": task.epochs,
        "batch_size_train": task.batch,
        "batch_size_encode": task.encode,
        "crop_length": task.crop,
        **({"k_fold_splits": list(rows.parts)} if task.folds else splits),
    }
    file.parent.mkdir(exist_ok=True)
    file.write_text(TASK.format(settings=settings, seed=seed))


def run_xares(python: str, work: Path, entry: Path, tasks: Sequence[TaskRows], seeds: int) -> dict[str, Any]:
    """Run X-ARES on an entry and return kNN and the scores of its MLP by seed, for every task.

    Raises:
        SystemExit: when it left a score out, with the end of what it printed.
    """
    files = [f"tasks/{rows.name}_{SEED + i}.py" for rows in tasks for i in range(seeds)]
    # X-ARES turns paths into names of modules, so they are relative to the folder in which it runs
    command = [
        python,
        "-m",
        "xares.run",
        "--max-jobs",
        "0",
        str(entry.relative_to(work) / ENTRY_FILE),
        *files,
    ]
    surroundings = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    surroundings |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(entry / "modules")}
    done = subprocess.run(
        command, cwd=work, env=surroundings, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    named = re.search(r"class (\w+Encoder)\b", (entry / ENTRY_FILE).read_text())
    assert named is not None
    scores: dict[str, Any] = {}
    for rows in tasks:
        folders = [work / "env" / rows.name / f"seed_{SEED + i}" / named[1] for i in range(seeds)]
        missing = [folder for folder in folders if not (folder / "knn_score.txt").is_file()]
        if done.returncode or missing:
            raise SystemExit(f"X-ARES gave no score for {rows.name}\n{done.stdout[-3000:]}")
        values = {
            kind: [float((folder / f"{kind}_score.txt").read_text().split()[0]) for folder in folders]
            for kind in ("mlp", "knn")
        }
        scores[rows.name] = {"knn": values["knn"][0], "mlp": values["mlp"]}
    return scores


def compare(
    models: Sequence[str], suite: str, names: Sequence[str] | None, seeds: int, python: str, work: Path
) -> dict[str, Any]:
    """Return the scores of every task and model by both, in the folder ``work``; without ``names`` of all tasks."""
    chosen = load_suite(suite)
    clips = {name: task for name, task in chosen.tasks.items() if task[0].kind == "clip"}
    if unknown := sorted(set(names or ()) - set(clips)):
        raise SystemExit(f"--tasks {unknown[0]}: {suite} has the tasks of clips {', '.join(clips)}")
    chosen = replace(chosen, tasks={name: clips[name] for name in names or clips})
    tasks = read_tasks(chosen)
    encoders = {spec: load_encoder(spec, torch.device("cpu")) for spec in models}
    ours = run_suite(chosen, tasks, encoders, "xares", seeds, False, Console())["scores"]
    held = [hold_clips(rows)[0] for rows in tasks]
    for rows in held:
        write_tars(rows, work / "env" / rows.name)
        for i in range(seeds):
            write_task(rows, SEED + i, work / "tasks" / f"{rows.name}_{SEED + i}.py")
    scores: dict[str, Any] = {}
    for number, spec in enumerate(models):
        entry = work / f"entry_{number}"
        export_checkpoint(spec, entry, "xares")
        for name, theirs in run_xares(python, work, entry, held, seeds).items():
            mine = ours[name][spec]
            scores.setdefault(name, {})[spec] = {
                "knn": {"xares": theirs["knn"], "uniaudio": mine["knn"]["mean"]},
                "mlp": {
                    "xares": {"mean": float(np.mean(theirs["mlp"])), "std": float(np.std(theirs["mlp"]))},
                    "uniaudio": mine["linear"],
                },
            }
    return scores


def draw_table(scores: dict[str, Any], seeds: int) -> Table:
    """Lay out the scores, those of X-ARES first."""
    table = Table(
        title=f"X-ARES from its package, and probe --protocol xares ({seeds} seeds)", title_justify="left"
    )
    for title in ("task", "model", "kNN, X-ARES", "kNN, probe", "MLP, X-ARES", "MLP, probe"):
        table.add_column(title, overflow="fold")
    for name, models in scores.items():
        for spec, score in models.items():
            mlp = [f"{side['mean']:.4f} ± {side['std']:.4f}" for side in score["mlp"].values()]
            table.add_row(name, spec, *(f"{value:.6f}" for value in score["knn"].values()), *mlp)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="+", metavar="MODEL", help="a run folder or a model, as for uniaudio probe"
    )
    parser.add_argument("--suite", default="realdata", help="its tasks of kind clip (default: realdata)")
    parser.add_argument("--tasks", nargs="+", metavar="NAME", help="some of them (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the JSON result to this file")
    arguments = parser.parse_args()
    python = os.environ.get(PYTHON)
    if not python:
        raise SystemExit(f"set {PYTHON} to a Python with the package xares; --help says how to make one")
    if arguments.suite == "realdata" and real_root("realdata") is None:
        raise SystemExit("no folder of real recordings: set UNIAUDIO_REALDATA")
    names = ("xares", "torch", "torchaudio", "transformers")
    versions = json.loads(subprocess.check_output([python, "-c", VERSIONS % (names,)], text=True))
    with tempfile.TemporaryDirectory() as work:
        place = Path(work).resolve()
        scores = compare(arguments.models, arguments.suite, arguments.tasks, arguments.seeds, python, place)
    Console(width=140).print(draw_table(scores, arguments.seeds))
    differ = [
        f"{name}, {spec}"
        for name, models in scores.items()
        for spec, score in models.items()
        if abs(score["knn"]["xares"] - score["knn"]["uniaudio"]) > 1e-9  # rounding of a mean over folds
    ]
    result = {
        "scores": scores,
        "seeds": arguments.seeds,
        "knn differs": differ,
        "xares": versions,
        "machine": machine(torch.get_num_threads()),
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    if differ:
        raise SystemExit(f"kNN differs: {'; '.join(differ)}")


if __name__ == "__main__":
    main()
