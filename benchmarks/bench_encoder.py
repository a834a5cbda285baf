"""The audio encoder, forward and backward: packed at exact length against transformers' Whisper padded to 30 s.

    python benchmarks/bench_encoder.py [--quick] [--cases CASE ...] [--encoder base] [--out FILE.json] [--plot FILE.png]

Same weights, clips, dtype and threads, no optimizer. The mel spectrogram is timed apart: the ratio that counts is
without it, the column "with mel" is with it. The loss is the mean over real frames of a squared projection.
"""

from __future__ import annotations

import time

import torch
from measure import Benchmark, Run, Step, main, time_steps
from setting import (
    CASES,
    QUICK_CASES,
    as_float,
    clip_seconds,
    noise,
    our_micro_batches,
    stock_micro_batches,
)
from sizes import Sizes
from torch import Tensor
from transformers import WhisperFeatureExtractor

from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.mel import count_encoder_frames
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE


def figures(run: Run) -> dict[str, float]:
    """Time one side's step."""
    clips = (2, 4) if run.quick else (8, 32)
    seconds = clip_seconds(run.case, clips[run.case == "mix"])
    step = (stock if run.side == "stock" else ours)(seconds, run.sizes)
    return {"clips": len(seconds), **time_steps(step, run.steps)}


def squared_projection(frames: Tensor) -> Tensor:
    """Sum a squared projection of frames ``[A, E]``: a loss whose gradient survives the last LayerNorm."""
    direction = torch.randn(frames.shape[1], generator=torch.Generator().manual_seed(0))
    return (frames @ direction).square().sum()


def stock(seconds: list[float], sizes: Sizes) -> Step:
    """Transformers' extractor and encoder, every clip padded to 30 s; the frames of the padding carry no loss."""
    whisper = sizes.new_encoder()
    extractor = WhisperFeatureExtractor(feature_size=sizes.mel_bins)
    waves = [as_float(clip) for clip in noise(seconds)]
    batches = [[waves[i] for i in members] for members in stock_micro_batches(seconds)]
    total = sum(count_encoder_frames(len(wave)) for wave in waves)

    def step() -> dict[str, float]:
        whisper.zero_grad(set_to_none=True)
        started = time.perf_counter()
        mels = [
            extractor(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            for batch in batches
        ]
        after_mel = time.perf_counter()
        loss = 0.0
        for batch, mel in zip(batches, mels, strict=True):
            hidden = whisper(mel).last_hidden_state
            frames = torch.cat([hidden[i, : count_encoder_frames(len(wave))] for i, wave in enumerate(batch)])
            part = squared_projection(frames) / total
            part.backward()
            loss += part.item()
        return summarize_side(loss, after_mel - started, time.perf_counter() - after_mel, seconds)

    return step


def ours(seconds: list[float], sizes: Sizes) -> Step:
    """The packed encoder over the same weights."""
    encoder = WhisperAudioEncoder(sizes.new_encoder()).train()
    clips = [torch.from_numpy(clip) for clip in noise(seconds)]
    batches = [Ragged.from_rows([clips[i] for i in members]) for members in our_micro_batches(seconds)]
    total = sum(encoder.num_frames(len(clip)) for clip in clips)

    def step() -> dict[str, float]:
        encoder.zero_grad(set_to_none=True)
        started = time.perf_counter()
        mels = [encoder.mel(batch) for batch in batches]
        after_mel = time.perf_counter()
        loss = 0.0
        for mel in mels:
            frames = encoder.encode(mel, layers=False)[-1].values
            part = squared_projection(frames) / total
            part.backward()
            loss += part.item()
        return summarize_side(loss, after_mel - started, time.perf_counter() - after_mel, seconds)

    return step


def summarize_side(loss: float, mel: float, encoder: float, seconds: list[float]) -> dict[str, float]:
    """Name the figures of one step."""
    return {"loss": loss, "mel_seconds": mel, "encoder_seconds": encoder, "audio_seconds": sum(seconds)}


RATIOS = {
    "times_faster": "encoder_seconds",
    "times_faster_with_mel": "seconds",
    "times_less_memory": "peak_gib",
}

if __name__ == "__main__":
    main(
        Benchmark(
            name="encoder",
            title="Audio encoder, forward and backward",
            cases=dict.fromkeys(CASES, ("stock", "ours")),
            figures=figures,
            headline="encoder_seconds",
            ratios=RATIOS,
            same={"30": ("stock", "ours")},
            quick_cases=QUICK_CASES,
        )
    )
