"""Continual learning on real recordings: speech first, then sounds, with and without each means against forgetting.

    python benchmarks/realdata_continual.py [--out runs/realdata_continual] [--seeds 3] [--jobs 2] [--methods a,b]

Needs the folder of recordings (UNIAUDIO_REALDATA). Each seed trains stage 1 once; every method goes on from there.
Prints tables, writes results.json and forgetting.png; the last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.table import Table

from uniaudio.build.encoders import load_encoder
from uniaudio.build.untrained_encoders import find_spec_at_best
from uniaudio.commands.soup import make_soup
from uniaudio.config.path_variables import real_root
from uniaudio.config.run_files import load_run
from uniaudio.data.sources.manifest import read_jsonl
from uniaudio.evaluate.forgetting import START, ScoreMatrix, mean, summarize_matrix
from uniaudio.evaluate.heat_maps import draw_matrices
from uniaudio.evaluate.probing.held_probes import probe_held
from uniaudio.evaluate.probing.labelled_folder import hold_folders

CONFIG = "configs/realdata_continual.yaml"
KINDS = ("linear", "mlp", "knn")
LEARNED = {"esc10": 2, "fsdd_digits": 1, "fsdd_speaker": 1}
# what stage 2 is given on top of the plain config
METHODS: dict[str, list[str]] = {
    "plain": [],
    "replay": ["stages.1.recipe=realdata_sounds_replay"],
    "reservoir": ["stages.1.recipe={reservoir}"],
    "l2sp": ["stages.1.continual={l2sp: {weight: 10.0}}"],
    "ewc": ["stages.1.continual={ewc: {weight: 3000.0, examples: 200}}"],
    "distill": ["stages.1.continual={distill: {weight: 0.02}}"],
    "lora": ["stages.1.train={'^encoder[.]': lora}", "stages.1.lr={'^encoder[.]': 5e-4}"],
    "layer decay": ["stages.1.layer_decay=0.5"],
    "ema": ["stages.1.continual={ema: {decay: 0.98}}"],
    "replay + distill": [
        "stages.1.recipe=realdata_sounds_replay",
        "stages.1.continual={distill: {weight: 0.02}}",
    ],
}
SOUPS = {"wise-ft": "plain", "replay + wise-ft": "replay"}  # between the end of stage 1 and a method's end
ALPHA = 0.5
DRAWN = ("plain", "replay", "wise-ft")  # in the figure
RESERVOIR_ROWS = 32  # of every training split


def train(out: Path, seed: int, *overrides: str) -> float:
    """Run or continue a training in a process of its own on one core; return its minutes."""
    started = time.monotonic()
    command = [sys.executable, "-m", "uniaudio.train", CONFIG, f"output_dir={out}", f"seed={seed}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (out.parent / f"{out.name}.log").open("w") as log:
        done = subprocess.run(
            [*command, "train.tensorboard=false", *overrides, "--resume", "auto"],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise SystemExit(f"{out} failed; see {log.name}")
    return (time.monotonic() - started) / 60


def make_reservoir(out: Path) -> Path:
    """Store a few old examples and return a recipe that replays them."""
    folder = out / "reservoir"
    if not folder.exists():
        command = [sys.executable, "-m", "uniaudio", "data", "pack", "realdata_speech", "--out", str(folder)]
        subprocess.run([*command, "--rows", str(RESERVOIR_ROWS)], check=True)
    recipe = folder / "sounds_and_reservoir.yaml"
    recipe.write_text(
        "base: realdata_sounds\nrecipe: sounds_and_reservoir\n"
        "replay:\n  - {recipe: realdata_speech.yaml, share: 0.4}\n"
    )
    return recipe


def speaker_set(root: Path, out: Path) -> Path:
    """Write a labelled folder that asks who speaks: the train speakers of fsdd_digits, every third clip held out."""
    folder = out / "fsdd_speaker"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = root / "fsdd_digits" / "manifest.jsonl"
    rows = [row for row in read_jsonl(manifest) if isinstance(row, dict) and row["split"] == "train"]
    lines = []
    for index, row in enumerate(sorted(rows, key=lambda row: (row["speaker"], row["audio"]))):
        clip = str((root / "fsdd_digits" / row["audio"]).resolve())
        lines.append({"audio": clip, "label": row["speaker"], "split": "test" if index % 3 == 2 else "train"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def run_seed(out: Path, seed: int, methods: list[str], reservoir: Path, jobs: int) -> dict[str, float]:
    """Train stage 1, then stage 2 with every method, ``jobs`` at a time; return the minutes of each."""
    folder = out / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    first = load_run(CONFIG).stages[0].steps
    minutes = {"speech": train(folder / "speech", seed, f"train.max_steps={first}")}

    def go_on(method: str) -> float:
        target = folder / method.replace(" ", "")
        if not target.exists():
            shutil.copytree(folder / "speech", target)
        return train(target, seed, *(o.replace("{reservoir}", str(reservoir)) for o in METHODS[method]))

    with ThreadPoolExecutor(jobs) as pool:
        minutes |= dict(zip(methods, pool.map(go_on, methods), strict=True))
    return minutes


def probe_seed(out: Path, seed: int, methods: list[str], sets: list, start: dict) -> dict:
    """Probe the end of stage 1 and of every method; returns method -> kind -> ScoreMatrix."""
    folder = out / f"seed{seed}"
    specs = {method: str(folder / method.replace(" ", "")) for method in methods}
    if "ema" in specs:
        specs["ema"] += ":ema"
    for name, method in SOUPS.items():
        if method in specs:
            target = folder / name.replace(" ", "")
            shutil.rmtree(target, ignore_errors=True)
            make_soup([specs[method]], target, start=str(folder / "speech"), alphas=(ALPHA,))
            specs[name] = str(target)
    specs["speech"] = str(folder / "speech")
    scores = {name: probe_held(load_encoder(spec), sets, 3).scores for name, spec in specs.items()}
    names = tuple(s.name for s in sets)
    return {
        method: {
            kind: ScoreMatrix(
                (START, "speech", "sounds"),
                names,
                tuple(
                    tuple(row[n][kind]["mean"] for n in names)
                    for row in (start, scores["speech"], scores[method])
                ),
                tuple(LEARNED[n] for n in names),
            )
            for kind in KINDS
        }
        for method in specs
        if method != "speech"
    }


def spread(values: list[float]) -> str:
    """Return mean ± standard deviation over seeds."""
    return f"{statistics.mean(values):.3f} ± {statistics.pstdev(values):.3f}"


def points(values: list[float], score: dict[str, float]) -> str:
    """Return how many points a mean over seeds is above a score."""
    return f"{100 * (statistics.mean(values) - score['mean']):+.1f}"


def summarise(seeds: list[dict], start: dict, best: dict, console: Console) -> dict:
    """Print one table for each kind of probe and return the figures.

    Args:
        start, best: scores of the untrained encoder, with the settings of the runs and at its best.
    """
    result: dict = {
        name: {n: {k: r[k]["mean"] for k in KINDS} for n, r in scores.items()}
        for name, scores in (("start", start), ("start, at its best", best))
    }
    sets = list(start)
    for kind in KINDS:
        title = f"{kind}: after both stages, mean ± spread over seeds (points against the start at its best; as it was)"
        table = Table(title=title)
        for column in ("method", *sets, "backward transfer", "forgetting"):
            table.add_column(column, justify="left" if column == "method" else "right")
        table.add_row("start, at its best", *(f"{best[n][kind]['mean']:.3f}" for n in sets), "", "")
        table.add_row("start", *(f"{start[n][kind]['mean']:.3f}" for n in sets), "", "")
        table.add_row(
            "after speech",
            *(spread([seed["plain"][kind].scores[1][i] for seed in seeds]) for i in range(len(sets))),
            "",
            "",
        )
        for method in seeds[0]:
            matrices = [seed[method][kind] for seed in seeds]
            finals = [[m.scores[2][i] for m in matrices] for i in range(len(sets))]
            summaries = [summarize_matrix(m) for m in matrices]
            cells = [
                f"{spread(values)} ({points(values, best[n][kind])}; {points(values, start[n][kind])})"
                for n, values in zip(sets, finals, strict=True)
            ]
            transfer = mean(s.backward_transfer for s in summaries)
            lost = mean(s.forgetting for s in summaries)
            assert transfer is not None  # every stage was measured on every set
            assert lost is not None
            table.add_row(method, *cells, f"{100 * transfer:+.1f}", f"{100 * lost:.1f}")
            result.setdefault(method, {})[kind] = {
                "final": dict(zip(sets, finals, strict=True)),
                "speech": {n: [m.scores[1][i] for m in matrices] for i, n in enumerate(sets)},
                "backward_transfer": transfer,
                "forgetting": lost,
            }
        console.print(table)
    return result


def mean_matrix(matrices: list[ScoreMatrix]) -> ScoreMatrix:
    """Return the mean over seeds."""
    first = matrices[0]
    rows = tuple(
        tuple(mean(m.scores[i][j] for m in matrices) for j in range(len(first.sets)))
        for i in range(len(first.stages))
    )
    return ScoreMatrix(first.stages, first.sets, rows, first.learned)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/realdata_continual"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", default=",".join(METHODS))
    arguments = parser.parse_args()
    root = real_root("realdata")
    if root is None:
        raise SystemExit("no folder of real recordings: set UNIAUDIO_REALDATA")
    console = Console(width=150)
    out: Path = arguments.out.absolute()
    methods = arguments.methods.split(",")
    folders = {name: root / name for name in ("esc10", "fsdd_digits")} | {
        "fsdd_speaker": speaker_set(root, out)
    }
    sets = hold_folders(folders, console.print)
    settings = load_run(CONFIG).encoders["whisper"]
    start = probe_held(load_encoder(settings.path), sets, 3).scores
    at_best = find_spec_at_best(settings, "encoders.whisper")
    best = start if at_best is None else probe_held(load_encoder(at_best), sets, 3).scores
    reservoir = make_reservoir(out)
    seeds, minutes = [], []
    for seed in range(arguments.seeds):
        minutes.append(run_seed(out, seed, methods, reservoir, arguments.jobs))
        seeds.append(probe_seed(out, seed, methods, sets, start))
        console.print(f"seed {seed}: {json.dumps({k: round(v, 1) for k, v in minutes[-1].items()})} minutes")
    result = summarise(seeds, start, best, console)
    drawn = [method for method in DRAWN if method in seeds[0]]
    draw_matrices(
        {m: mean_matrix([seed[m]["linear"] for seed in seeds]) for m in drawn}, out / "forgetting.png"
    )
    result |= {
        "minutes": {name: round(statistics.mean(m[name] for m in minutes), 2) for name in minutes[0]},
        "machine": f"{platform.processor() or platform.machine()}, {arguments.jobs} runs at a time, 1 thread each",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    (out / "results.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
