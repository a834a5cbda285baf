"""Probing: embeddings at exact length against the stock encoder padded to 30 s, kNN against scikit-learn, all probes.

    python benchmarks/bench_probes.py [--quick] [--runs 3] [--out FILE.json]

Three figures on random weights and vectors: a set of 1 s clips embedded by whisper-tiny's encoder, mel spectrogram
included; 10 neighbours by cosine of 4,000 among 20,000 vectors of 1280; and linear, MLP and kNN probes with three seeds
on 20 sets of 2,000 vectors of 768 (1,600 train, 400 test). Every side runs in a fresh process, A B A B, and the minimum
counts. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import machine, wait_for_quiet
from rich.console import Console
from rich.table import Table
from setting import as_float, noise, whisper_tiny
from sklearn.neighbors import NearestNeighbors
from transformers import WhisperFeatureExtractor

from uniaudio.evaluate.embed import embed_clips
from uniaudio.evaluate.probes import KINDS, knn_predict, probe
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.types import SAMPLE_RATE

SIDES = {"embed": ("stock", "ours"), "knn": ("sklearn", "ours"), "probes": ("ours",)}
STOCK_BATCH = 8  # clips of 30 s at a time
CLASSES = 20


def embed(side: str, quick: bool) -> Callable[[], Any]:
    """One mean vector for each of 64 clips of 1 s."""
    clips = noise([1.0] * (4 if quick else 64))
    whisper = whisper_tiny().eval()
    if side == "ours":
        encoder = WhisperAudioEncoder(whisper)
        return lambda: embed_clips(encoder, clips)
    extractor = WhisperFeatureExtractor(feature_size=80)

    @torch.no_grad()
    def stock() -> torch.Tensor:
        vectors = []
        for start in range(0, len(clips), STOCK_BATCH):
            waves = [as_float(clip) for clip in clips[start : start + STOCK_BATCH]]
            mel = extractor(waves, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            vectors.append(whisper(mel).last_hidden_state[:, :50].mean(1))
        return torch.cat(vectors)

    return stock


def knn(side: str, quick: bool) -> Callable[[], Any]:
    """Classes of 4,000 vectors by their neighbours among 20,000, of 1280 numbers each."""
    train, test = (200, 50) if quick else (20_000, 4_000)
    rng = np.random.default_rng(0)
    x, other = (rng.standard_normal((count, 1280), dtype=np.float32) for count in (train, test))
    y = rng.integers(0, CLASSES, train)
    if side == "ours":
        tensors = torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(other)
        return lambda: knn_predict(*tensors, CLASSES)

    def sklearn() -> Any:
        found = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(x)
        distance, index = found.kneighbors(other)
        weights = np.exp((1 - distance) / 0.07)
        votes = np.zeros((len(other), CLASSES))
        np.add.at(votes, (np.arange(len(other))[:, None], y[index]), weights)
        return votes.argmax(1)

    return sklearn


def probes(side: str, quick: bool) -> Callable[[], Any]:
    """All probes of 20 sets, three seeds each."""
    sets, count = (1, 100) if quick else (20, 2000)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CLASSES, 768), dtype=np.float32)
    labels = np.arange(count) % CLASSES
    points = centres[labels] + 4 * rng.standard_normal((count, 768), dtype=np.float32)
    cut = count * 4 // 5

    def run() -> list[Any]:
        return [
            probe(points[:cut], labels[:cut], points[cut:], labels[cut:], 3, kinds=KINDS) for _ in range(sets)
        ]

    return run


PREPARE = {"embed": embed, "knn": knn, "probes": probes}


def timed(case: str, side: str, quick: bool) -> float:
    """Return the seconds of one run in this process; the two short cases are run once before."""
    step = PREPARE[case](side, quick)
    if case != "probes":
        step()
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def child(case: str, side: str, arguments: argparse.Namespace) -> float:
    """Run one side in a process of its own and return its seconds."""
    threads = str(arguments.threads)
    command = [sys.executable, __file__, "--case", case, "--side", side, "--threads", threads]
    done = subprocess.run(
        [*command, *(["--quick"] if arguments.quick else [])],
        env={**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Embeddings, kNN and probes")
    parser.add_argument("--quick", action="store_true", help="one run of little, to see that it works")
    parser.add_argument("--runs", type=int, help="fresh processes per side (default 3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="also write the JSON result to this file")
    parser.add_argument("--case", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.side:
        print(json.dumps(timed(arguments.case, arguments.side, arguments.quick)))
        return
    console = Console(width=max(110, Console().width))
    result: dict[str, Any] = {
        "benchmark": "Embeddings, kNN and probes",
        "machine": machine(arguments.threads),
    }
    result["quiet"] = arguments.quick or wait_for_quiet(console)
    table = Table(title=result["benchmark"])
    for column in ("case", "side", "seconds", "times faster", "runs", "load"):
        table.add_column(column)
    result["cases"] = {}
    for case, sides in SIDES.items():
        runs: dict[str, list[float]] = {side: [] for side in sides}
        loads = []
        for _ in range(arguments.runs or (1 if arguments.quick else 3)):
            for side in sides:
                loads.append(os.getloadavg()[0])
                runs[side].append(child(case, side, arguments))
        best = {side: min(seconds) for side, seconds in runs.items()}
        faster = best[sides[0]] / best["ours"] if len(sides) > 1 else None
        result["cases"][case] = {"seconds": best, "runs": runs, "loads": loads, "times_faster": faster}
        for side in sides:
            ratio = f"{faster:.1f}x" if faster and side == "ours" else ""
            shown = " ".join(f"{seconds:.3f}" for seconds in runs[side])
            table.add_row(case, side, f"{best[side]:.3f}", ratio, shown, f"{max(loads):.1f}")
    console.print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
