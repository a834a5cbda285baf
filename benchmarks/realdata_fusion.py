"""Every fusion on real recordings, in one table: probes, answers and cost beside each encoder alone.

    python benchmarks/realdata_fusion.py [--out runs/fusion] [--only NAME ...] [--steps 150]

Needs the folder of recordings (UNIAUDIO_REALDATA). The second encoder is a small Whisper-shaped one (width 128, 4
layers), trained here from random weights on the same recipe. Fusions have frozen encoders, the same steps and seed.
Runs that are finished are not done again. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from measure import machine
from rich.console import Console
from rich.table import Table

from uniaudio.build.encoders import load_encoder
from uniaudio.commands.evaluate import run_evaluation
from uniaudio.commands.probe import run_probe
from uniaudio.commands.train import run_training
from uniaudio.config.path_variables import real_root
from uniaudio.config.run_files import load_run
from uniaudio.evaluate.probing.suite_table import read_references
from uniaudio.tiny.checkpoints import save_miniature_whisper

PROBED = ("esc10", "fsdd_digits")
SECOND_STEPS = 600


def runs(out: Path, whisper: Path, steps: int) -> dict[str, list[str]]:
    """Return the overrides of every run, in order: later ones stand on the encoders of earlier ones."""
    second, adapted = f"path: {out}/second", f"path: {out}/adapted"
    alone = "encoders={{{name}: {{{path}, train: {train}, lr: {lr}}}}}"
    overrides = ["fusion=null", f"stages.0.steps={steps}"]
    fused = [f"encoders.second.path={out}/second", f"stages.0.steps={steps}"]
    small = alone.format(name="second", path=f"path: {out}/small", train="full", lr="1e-3")
    table = {
        "second": [small, "fusion=null", f"stages.0.steps={SECOND_STEPS}", "stages.0.warmup=60"],
        "whisper alone": [
            alone.format(name="whisper", path=f"path: {whisper}", train="frozen", lr="1e-3"),
            *overrides,
        ],
        "second alone": [alone.format(name="second", path=second, train="frozen", lr="1e-3"), *overrides],
        "adapted": [alone.format(name="second", path=second, train="lora", lr="1e-3"), *overrides],
    }
    kinds: dict[str, str] = {
        "concat": "{kind: concat, lr: 1e-3, rate: 25}",
        "sum": "{kind: sum, lr: 1e-3, rate: 25}",
        "mix": "{kind: mix, lr: 1e-3, rate: 25}",
        "gate": "{kind: gate, lr: 1e-3, rate: 25}",
        "gate + stft": "{kind: gate, lr: 1e-3, rate: 25, stft: {}}",
        "moe concat": "{kind: moe_concat, lr: 1e-3, rate: 25}",
        "moe proj": "{kind: moe_proj, lr: 1e-3, rate: 25}",
        "explicit": "{kind: explicit, lr: 1e-3, rate: 25, stft: {}}",
        "wq": "{kind: wq, lr: 1e-3, rate: 25}",
        "layers": "{kind: layers, lr: 1e-3, rate: 25}",
        "hconv": "{kind: hconv, lr: 1e-3, rate: 25}",
        "chconv": "{kind: chconv, lr: 1e-3, rate: 25}",
        "unimoe": "{kind: unimoe, lr: 1e-3, rate: 25}",
    }
    table |= {name: [*fused, f"fusion={kind}"] for name, kind in kinds.items()}
    frozen = f"{{{adapted}, train: frozen}}"
    table["implicit"] = [f"encoders.second={frozen}", *fused[1:], f"fusion={kinds['gate + stft']}"]
    table["mowe"] = [*fused, f"encoders.adapted={frozen}", "fusion={kind: mowe, lr: 1e-3, rate: 25}"]
    return table


def one(name: str, overrides: list[str], out: Path, root: Path) -> dict[str, Any]:
    """Train, probe and ask one run; return its row."""
    folder = out / name.replace(" ", "_")
    known = folder / "row.json"
    if known.is_file():
        return json.loads(known.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    config = load_run("configs/realdata_fusion.yaml", [*overrides, f"output_dir={folder}"])
    run_training(config, None)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speed = [row["audio_seconds_per_second"] for row in rows if "loss" in row][1:]
    data = [f"{label}={root / label}" for label in PROBED]
    probed = run_probe([str(folder)], data, out=folder / "probes.json", references=name == "whisper alone")
    probes = probed["scores"]
    answers = run_evaluation(str(folder), None, folder / "answers.json", None)
    encoder = load_encoder(str(folder), torch.device("cpu"))
    row = {
        "probes": {label: probes[label][str(folder)] for label in PROBED},
        "answers": {key: {"metric": r["metric"], "score": r["score"]} for key, r in answers.items()},
        "loss": next(row["loss"] for row in reversed(rows) if "loss" in row),
        "audio_seconds_per_second": sorted(speed)[len(speed) // 2],
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "trained": sum(p.numel() for p in encoder.parameters() if p.requires_grad),
    }
    for reference in read_references(probed).values():
        row["at its best"] = {label: probes[label][reference.best] for label in PROBED}
    known.write_text(json.dumps(row, indent=1) + "\n")
    return row


def show(rows: dict[str, dict[str, Any]], console: Console) -> None:
    """Print the table; cost is the time for a second of audio, beside Whisper alone."""
    table = Table(title="Whisper tiny.en and a second encoder, frozen: probes and answers by fusion")
    base = rows.get("whisper alone", next(iter(rows.values())))["audio_seconds_per_second"]
    sets = list(next(iter(rows.values()))["answers"])
    probed = [f"{s} {p}" for s in PROBED for p in ("linear", "mlp", "knn")]
    for column in ("fusion", "trained", *probed, *sets, "loss", "cost"):
        table.add_column(column, justify="left" if column == "fusion" else "right", overflow="fold")
    for name, row in rows.items():
        if "at its best" in row:
            untrained = [row["at its best"][s][p]["mean"] for s in PROBED for p in ("linear", "mlp", "knn")]
            table.add_row("whisper, padded to 30 s", "", *(f"{score:.3f}" for score in untrained))
        scores = [f"{row['probes'][s][p]['mean']:.3f}" for s in PROBED for p in ("linear", "mlp", "knn")]
        cells = [f"{row['answers'][s]['score']:.3f}" if s in row["answers"] else "" for s in sets]
        cost = base / row["audio_seconds_per_second"]
        table.add_row(
            name, f"{row['trained'] / 1e6:.2f} M", *scores, *cells, f"{row['loss']:.3f}", f"{cost:.2f}x"
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/fusion"))
    parser.add_argument("--only", nargs="+", help="names of runs; those they stand on must be there")
    parser.add_argument("--steps", type=int, default=150)
    arguments = parser.parse_args()
    root = real_root("realdata")
    if root is None:
        raise SystemExit("no folder of real recordings: set UNIAUDIO_REALDATA")
    out = arguments.out.absolute()
    console = Console(width=max(200, Console().width))
    if not (out / "small").is_dir():
        save_miniature_whisper(out / "small", d_model=128, layers=4, heads=4)
    table = runs(out, root / "weights" / "whisper_tiny_en_encoder_hf", arguments.steps)
    rows = {}
    for name, overrides in table.items():
        if arguments.only and name not in arguments.only:
            continue
        console.rule(name)
        rows[name] = one(name, overrides, out, root)
    shown = {name: row for name, row in rows.items() if name not in ("second", "adapted")}
    show(shown or rows, console)
    print(json.dumps({"rows": rows, "machine": machine(torch.get_num_threads())}))


if __name__ == "__main__":
    main()
