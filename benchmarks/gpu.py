"""The GPU table: one process, one GPU, under nine minutes, with random weights alone.

    benchmarks/gpu.sh [--out FILE.json] [--plot FILE.png] [--store benchmarks/results] [--minutes 8.7]
    benchmarks/gpu.sh --device cpu --size miniature --quick    # the same code, to see that it runs

Both sides of a row have the same weights, clips, ids, optimizer (AdamW, rate 0) and precision (float32 weights and
bfloat16 autocast, as ``precision: bf16`` trains; the frozen decoder in bfloat16). Times are CUDA events over whole
steps, the fastest of three after five that do not count. The stock side finds its mel spectrograms ready on the
device, ours makes them in the step. A section that fails tells so in one line, and the next one begins.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from gpu_data import waiting_for_data
from gpu_parity import parity, synchronisations
from gpu_results import as_result
from gpu_rows import compiled, eight_bits, embeddings, labels, recomputed, shared_prefixes
from gpu_step import MEASURED, SPECIFIED, by_length, modelled, on_the_mix
from gpu_timing import Clock, Setting, fastest, free
from measure import machine
from results import Result, history, moved, store_result
from rich.console import Console
from sizes import QWEN_VOCABULARY
from tables import moved_table

Row = dict[str, Any]
SIZES = {"large-v3": ("large-v3", ("0.6B", "1.7B")), "miniature": ("miniature", ("miniature",))}
LENGTHS = (1.0, 2.0, 5.0, 10.0, 15.0, 30.0)
BUDGET = 640.0  # seconds of audio in a micro-batch
AIMS = {"0.6B": 1500.0, "1.7B": 1150.0}  # audio-hours per GPU-hour on the mix, on an H200
TIMES = 3.0  # faster than the stock way
WAIT = 0.02  # of the time, for data
# rows of outputs, width out, width in
PRODUCTS = {
    "square": (8192, 8192, 8192),
    "encoder, first map": (32_000, 5120, 1280),
    "encoder, second map": (32_000, 1280, 5120),
    "encoder, projection": (32_000, 1280, 1280),
    "0.6B, up": (11_000, 3072, 1024),
    "1.7B, up": (11_000, 6144, 2048),
    "0.6B, head": (2048, QWEN_VOCABULARY, 1024),
}


@dataclass(frozen=True)
class Section:
    """A part of the table that stands for itself.

    Args:
        seconds: that it takes on an H200 by the operations it does at 400 TFLOP/s, models and compilation included.
    """

    title: str
    rows: Callable[[Setting], Iterator[Row]]
    seconds: float


def products(setting: Setting) -> Iterator[Row]:
    """Yield the speed of matrix products in bfloat16, on random numbers."""
    for name, (rows, out, inner) in PRODUCTS.items():
        m, n, k = (rows, out, inner) if setting.cuda else (rows // 64, out // 64, inner // 64)
        left, right = (torch.randn(a, k, device=setting.device, dtype=torch.bfloat16) for a in (m, n))
        seconds = fastest(partial(torch.matmul, left, right.t()), setting, calls=10)
        speed = 2 * m * n * k / seconds
        yield {
            "name": f"{name}, {m} x {n} x {k}",
            "TFLOP/s": speed / 1e12,
            "of 794.5": f"{speed / MEASURED:.1%}",
            "of 989": f"{speed / SPECIFIED:.1%}",
        }


# what matters most comes first: the clock may end the last ones
SECTIONS = (
    Section("matrix products in bfloat16", products, 5),
    Section("the same numbers", parity, 25),
    Section("waiting for the device", synchronisations, 10),
    Section("modelled operations", modelled, 1),
    Section("full step on the mix", on_the_mix, 55),
    Section("waiting for data", waiting_for_data, 15),
    Section("compiled layers", compiled, 100),
    Section("prefix sharing", shared_prefixes, 15),
    Section("recomputation", recomputed, 15),
    Section("frozen decoder in FP8", eight_bits, 70),
    Section("closed sets", labels, 10),
    Section("embedding", embeddings, 10),
    Section("full step by clip length", by_length, 110),
)


def main() -> int:
    """Print the table and return 0, or 1 when a fast path computed something else or a section failed."""
    arguments = parse()
    setting = setting_of(arguments)
    result: dict[str, Any] = {"benchmark": "gpu", "machine": facts(setting), "sections": {}}
    print(json.dumps(result["machine"]))
    print(f"about {sum(s.seconds for s in SECTIONS):.0f} s on an H200", flush=True)
    for section in SECTIONS:
        if arguments.only and not any(word in section.title for word in arguments.only):
            continue
        print(f"\n## {section.title} ({setting.clock.used:.0f} s)", flush=True)
        result["sections"][section.title] = run(section, setting)
        free(setting.device)
        if arguments.out:
            arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for line in verdicts(result["sections"]):
        print(line)
    if arguments.store:
        store(as_result(result["sections"], result["machine"], arguments.quick), arguments.store)
    if arguments.plot:
        plot(result["sections"].get("full step by clip length", []), arguments.plot)
    print(f"\n{setting.clock.used:.0f} s in all")
    rows = [row for section in result["sections"].values() for row in section]
    return int(any(row.get("verdict", "").startswith(("DIFFERENT", "WAITS", "failed")) for row in rows))


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="the GPU table")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", choices=SIZES, default="large-v3")
    parser.add_argument("--quick", action="store_true", help="few clips and one step, to see that it works")
    parser.add_argument("--minutes", type=float, default=8.7, help="no row begins that would end after them")
    parser.add_argument("--budget", type=float, help="seconds of audio in a micro-batch")
    parser.add_argument("--only", nargs="+", help="sections whose titles contain one of these")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--plot", type=Path, help="draw the curve over clip lengths into this PNG file")
    parser.add_argument(
        "--store", type=Path, help="keep the figures in this folder of results and tell what moved"
    )
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU here: --device cpu --size miniature --quick runs the same code without one")
    return arguments


def setting_of(arguments: argparse.Namespace) -> Setting:
    """Return where and how is measured."""
    device = torch.device(arguments.device)
    encoder, decoders = SIZES[arguments.size]
    cuda = device.type == "cuda"
    return Setting(
        device=device,
        encoder=encoder,
        decoders=decoders,
        budget=arguments.budget or (8.0 if arguments.quick else BUDGET),
        lengths=(1.0, 30.0) if arguments.quick else LENGTHS,
        precision=torch.bfloat16 if cuda else None,
        weights=torch.bfloat16 if cuda else torch.float32,
        warm_up=1 if arguments.quick else 5,
        runs=1 if arguments.quick else 3,
        clock=Clock(60 * arguments.minutes),
    )


def facts(setting: Setting) -> dict[str, Any]:
    """Return where and with what is measured."""
    facts = machine(torch.get_num_threads())
    facts |= {"optimizer": "AdamW", "budget": setting.budget}
    facts["dtype"] = "float32" if setting.precision is None else "float32 weights, bfloat16 autocast"
    if setting.cuda:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            driver = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        except OSError:
            driver = "unknown"
        about = torch.cuda.get_device_properties(setting.device)
        facts |= {"gpu": about.name, "gib": round(about.total_memory / 2**30, 1), "driver": driver}
        facts["cuda"] = torch.version.cuda
    return facts


def run(section: Section, setting: Setting) -> list[Row]:
    """Print the rows of a section as they come and return them; what goes wrong is a row too."""
    rows: list[Row] = []
    if setting.clock.left < min(section.seconds, 5):
        rows.append({"name": section.title, "verdict": "left out: no time is left"})
        print(written(rows[-1]), flush=True)
        return rows
    try:
        for row in section.rows(setting):
            rows.append(row)
            print(written(row), flush=True)
    except (Exception, KeyboardInterrupt) as problem:  # the second is the time limit of gpu.sh
        reason = next(iter(str(problem).splitlines()), "")
        rows.append({"name": section.title, "verdict": f"failed: {type(problem).__name__}: {reason[:200]}"})
        print(written(rows[-1]), flush=True)
        rows[-1]["traceback"] = traceback.format_exc()
    return rows


def written(row: Row) -> str:
    """Return a row as one line; what has parts of its own stays in the JSON."""
    parts = [f"{row['name']:<42}"]
    for name, value in row.items():
        if name in ("name", "verdict", "case", "decoder") or isinstance(value, dict) or value is None:
            continue
        parts.append(f"{name} {figure(value) if isinstance(value, float) else value}")
    return " | ".join([*parts, *([row["verdict"]] if "verdict" in row else [])])


def figure(value: float) -> str:
    """Return a number with three digits that count, or as many as it has before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def verdicts(sections: dict[str, list[Row]]) -> Iterator[str]:
    """Yield what was aimed at and what came out."""
    yield "\n## aims on an H200"
    mixes = sections.get("full step on the mix", [])
    stock = {row["decoder"]: row["stock"]["hours"] for row in mixes if "stock" in row}
    for row in (*mixes, *sections.get("compiled layers", [])):
        if (decoder := row.get("decoder")) in AIMS:
            aim, got = AIMS[decoder], row["audio-h/GPU-h"]
            yield f"{row['name']}: {got:,.0f} audio-hours per GPU-hour, aim {aim:,.0f}: {met(got >= aim)}"
            if decoder in stock:
                times = got / stock[decoder]
                yield f"{row['name']}: {times:.2f}x the stock way, aim {TIMES:g}x: {met(times >= TIMES)}"
    for row in sections.get("waiting for data", []):
        if "wait share" in row:
            share = row["wait share"]
            yield f"{row['name']}: {share:.2%} of the time waiting for data, aim below {WAIT:.0%}: {met(share < WAIT)}"


def met(reached: bool) -> str:
    """Say whether an aim was reached."""
    return "reached" if reached else "MISSED"


def store(result: Result, folder: Path) -> None:
    """Put a result beside those of other days and print what moved since the newest one of the same kind of GPU."""
    before = next(iter(history(folder, result)[-1:]), None)
    moves, against = [], {}
    if before is not None:
        moves = moved(before, result)
        against["gpu"] = f"{before['machine']['when']} ({before['machine']['commit']})"
    Console(width=160).print(moved_table(moves, against))
    print(f"stored in {store_result(folder, result)}")


def plot(rows: list[Row], path: Path) -> None:
    """Draw audio-hours per GPU-hour of both sides over the clip length."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no picture: matplotlib is not installed")
        return
    image = Figure(figsize=(6, 4), layout="constrained")
    axes = image.subplots()
    for decoder in dict.fromkeys(row["decoder"] for row in rows if "decoder" in row):
        same_decoder = [row for row in rows if row.get("decoder") == decoder]
        lengths = [float(row["case"]) for row in same_decoder]
        for side, style in (("ours", "o-"), ("stock", "x--")):
            axes.loglog(
                lengths, [row[side]["hours"] for row in same_decoder], style, label=f"{decoder}, {side}"
            )
    axes.set(xlabel="seconds of a clip", ylabel="audio-hours per GPU-hour", title="full step")
    axes.legend()
    image.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
