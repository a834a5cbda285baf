"""What fusion costs: sparse MoWE beside its base alone, experts beside a dense layer, packed fusion beside a padded
one.

    python benchmarks/bench_fusion.py [--quick] [--cases NAME ...] [--out FILE.json]

Random weights, float32.

mowe ...   whisper-base size (20.6 M) as base, six weak encoders of a fifth of it, the mix of clip lengths. base: the
           strong encoder alone. sparse: MoWE as it is. dense: all six weak encoders on all clips, then the same
           routing.
moe        15,000 frames of two streams, 8 experts, top-2, against a dense layer with the same active parameters; with
           backward.
packed     softmax gate over two frozen whisper-tiny encoders, the gate trained: clips padded to 30 s with stock
           modules, against packed clips. A pair of frames is averaged to 25 Hz on both sides.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import Benchmark, Run, Step, main, time_steps
from setting import (
    as_float,
    clip_seconds,
    noise,
    our_micro_batches,
    stock_micro_batches,
)
from sizes import Sizes
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.fusion.align import count_frames_at
from uniaudio.model.fusion.encoder import FusedEncoder
from uniaudio.model.fusion.gate import GatedResidual, GateFusion
from uniaudio.model.fusion.moe import MoeFusion
from uniaudio.model.fusion.mowe import MoweEncoder
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

SIDES = {
    "mowe forward, one router": ("base", "sparse", "dense"),
    "mowe forward, both routers": ("base", "sparse", "dense"),
    "mowe step, both routers": ("base", "sparse", "dense"),
    "mowe step, weak frozen": ("base", "sparse", "dense"),
    "moe": ("dense", "sparse"),
    "packed": ("padded", "packed"),
}
WEAK = 6
QUICK_CLIPS, CLIPS = 2, 6
FRAMES, QUICK_FRAMES = 15_000, 600


def whisper(width: int, layers: int, heads: int, seed: int) -> WhisperEncoder:
    torch.manual_seed(seed)
    config = WhisperConfig(
        d_model=width, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * width
    )
    config._attn_implementation = "sdpa"
    return WhisperEncoder(config)


class DenseMowe(MoweEncoder):
    """Every weak encoder hears every clip once, and masks choose: what an implementation without routing would do."""

    def encode_routed(
        self, audio: Ragged, base: Ragged, chosen: list[Tensor], weights: list[Tensor], masks: Tensor | None
    ) -> list[Tensor]:
        frames = []
        for index, name in enumerate(self.pool):
            encoded = self.run(name, audio, layers=False, masks=masks).frames
            frames.append(self.project[index](self.align_states(name, [encoded], base.lengths)[0].values))
        return [
            sum((pick == i)[:, None] * weight * one for i, one in enumerate(frames))
            for pick, weight in zip(chosen, weights, strict=True)
        ]


def mowe(case: str, side: str, count: int) -> Step:
    """A forward, or forward and backward, over the mix in micro-batches by seconds."""
    base = WhisperAudioEncoder(whisper(512, 6, 8, 0))
    encoder: nn.Module = base
    if side != "base":
        pool = {f"weak{i}": WhisperAudioEncoder(whisper(256, 4, 4, i + 1)) for i in range(WEAK)}
        kind = DenseMowe if side == "dense" else MoweEncoder
        torch.manual_seed(0)
        encoder = kind({"base": base, **pool}, 50.0, routers="dependent" if "one router" in case else "both")
        assert encoder.dependent is not None
        nn.init.normal_(encoder.dependent.weigh.weight, std=3.0)  # clips spread over the pool
        if "weak frozen" in case:
            for name in pool:
                encoder.encoders[name].requires_grad_(False)
    seconds = clip_seconds("mix", count)
    clips = [torch.from_numpy(clip) for clip in noise(seconds)]
    batches = [
        Ragged.from_rows([clips[i] for i in micro_batch]) for micro_batch in our_micro_batches(seconds)
    ]
    backward = "step" in case
    encoder.train(backward)

    def step() -> dict[str, float]:
        encoder.zero_grad(set_to_none=True)
        loss = 0.0
        for batch in batches:
            with torch.set_grad_enabled(backward):
                part = encoder(batch).frames.values.square().mean()
            if backward:
                part.backward()
            loss += part.item()
        return {"loss": loss, "audio_seconds": sum(seconds)}

    return step


def moe(case: str, side: str, count: int) -> Step:
    """One layer over two streams of 512 and 768 wide frames, to 512; hidden width 1024 for each expert."""
    generator = torch.Generator().manual_seed(0)
    frames = FRAMES if count > QUICK_CLIPS else QUICK_FRAMES
    streams = [
        Ragged(torch.randn(frames, d, generator=generator), torch.tensor([frames])) for d in (512, 768)
    ]
    torch.manual_seed(0)
    if side == "sparse":
        layer: nn.Module = MoeFusion(
            ("w", "d"), (512, 768), 512, project=False, experts=8, top_k=2, hidden=1024
        )
    else:  # two experts' worth of hidden width on every frame
        layer = nn.Sequential(nn.Linear(1280, 2048), nn.GELU(), nn.Linear(2048, 512), nn.Linear(512, 512))
    joined = torch.cat([stream.values for stream in streams], 1)

    def step() -> dict[str, float]:
        layer.zero_grad(set_to_none=True)
        values = layer([[s] for s in streams]).frames.values if side == "sparse" else layer(joined)
        loss = values.square().mean()
        loss.backward()
        return {"loss": loss.item()}

    return step


def packed(case: str, side: str, count: int) -> Step:
    """The gate over two frozen encoders, forward of all and backward of the gate."""
    seconds = clip_seconds("mix", count)
    waves = noise(seconds)
    both = [
        Sizes().new_encoder().eval().requires_grad_(False),
        whisper(384, 4, 6, 5).eval().requires_grad_(False),
    ]
    torch.manual_seed(0)
    total = sum(count_frames_at(25.0, len(wave)) for wave in waves)
    if side == "packed":
        encoders = {f"e{i}": WhisperAudioEncoder(w) for i, w in enumerate(both)}
        encoder = FusedEncoder(encoders, GateFusion(("e0", "e1"), (384, 384), 384), 25.0).train()
        clips = [torch.from_numpy(wave) for wave in waves]
        batches = [
            Ragged.from_rows([clips[i] for i in micro_batch]) for micro_batch in our_micro_batches(seconds)
        ]

        def ours() -> dict[str, float]:
            encoder.zero_grad(set_to_none=True)
            loss = 0.0
            for batch in batches:
                part = encoder(batch).frames.values.square().sum() / total
                part.backward()
                loss += part.item()
            return {"loss": loss, "audio_seconds": sum(seconds)}

        return ours
    gate = GatedResidual((384, 384), 384)
    extractor = WhisperFeatureExtractor()

    def stock() -> dict[str, float]:
        gate.zero_grad(set_to_none=True)
        loss = 0.0
        for micro_batch in stock_micro_batches(seconds):
            batch = [as_float(waves[i]) for i in micro_batch]
            mel = extractor(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            with torch.no_grad():
                states = [w(mel).last_hidden_state for w in both]
                streams = [state.flatten(0, 1).unflatten(0, (-1, 2)).mean(1) for state in states]
            fused = gate(streams)[0].unflatten(0, (len(micro_batch), -1))
            real = torch.arange(750)[None] < torch.tensor(
                [[count_frames_at(25.0, len(wave))] for wave in batch]
            )
            part = fused[real].square().sum() / total
            part.backward()
            loss += part.item()
        return {"loss": loss, "audio_seconds": sum(seconds)}

    return stock


PREPARE: dict[str, Callable[[str, str, int], Step]] = {"mowe": mowe, "moe": moe, "packed": packed}


def figures(run: Run) -> dict[str, float]:
    """Time one side's step."""
    step = PREPARE[run.case.split()[0]](run.case, run.side, QUICK_CLIPS if run.quick else CLIPS)
    return time_steps(step, run.steps)


if __name__ == "__main__":
    main(Benchmark(name="fusion", title="Fusion", cases=SIDES, figures=figures))
