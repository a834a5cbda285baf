"""Probing: embeddings at exact length against the stock encoder padded to 30 s, kNN against scikit-learn, all probes.

    python benchmarks/bench_probes.py [--quick] [--cases CASE ...] [--out FILE.json]

Three figures on random weights and vectors: a set of 1 s clips embedded by whisper-tiny's encoder, mel spectrogram
included; 10 neighbours by cosine of 4,000 among 20,000 vectors of 1280; and linear, MLP and kNN probes with three seeds
on 20 sets of 2,000 vectors of 768 (1,600 train, 400 test).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measure import Benchmark, Run, main, peak_gib
from setting import as_float, noise
from sizes import Sizes
from sklearn.neighbors import NearestNeighbors
from transformers import WhisperFeatureExtractor

from uniaudio.evaluate.embedding import embed_clips
from uniaudio.evaluate.probing.clip_probes import Fold, predict_knn, probe_folds
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.types import SAMPLE_RATE

SIDES = {"embed": ("stock", "ours"), "knn": ("sklearn", "ours"), "probes": ("ours",)}
STOCK_BATCH = 8  # clips of 30 s at a time
CLASSES = 20


def embed(side: str, quick: bool) -> Callable[[], Any]:
    """One mean vector for each of 64 clips of 1 s."""
    clips = noise([1.0] * (4 if quick else 64))
    whisper = Sizes().new_encoder().eval()
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
        return lambda: predict_knn(*tensors, CLASSES)

    def sklearn() -> Any:
        neighbors = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(x)
        distance, index = neighbors.kneighbors(other)
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

    parts = (points[:cut], labels[:cut], points[cut:], labels[cut:])
    fold = Fold(*map(torch.from_numpy, parts))

    def run() -> list[Any]:
        return [probe_folds([fold], CLASSES, 3) for _ in range(sets)]

    return run


PREPARE = {"embed": embed, "knn": knn, "probes": probes}


def figures(run: Run) -> dict[str, float]:
    """Return the seconds of one run in this process; the two short cases are run once before."""
    step = PREPARE[run.case](run.side, run.quick)
    if run.case != "probes":
        step()
    started = time.perf_counter()
    step()
    return {"seconds": time.perf_counter() - started, "peak_gib": peak_gib()}


if __name__ == "__main__":
    main(Benchmark(name="probes", title="Embeddings, kNN and probes", cases=SIDES, figures=figures))
