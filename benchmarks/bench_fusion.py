"""What fusion costs: sparse MoWE beside its base alone, experts beside a dense layer, packed fusion beside a padded
one.

    python benchmarks/bench_fusion.py [--quick] [--out FILE.json] [--cases NAME ...]

Fresh processes in turns (A B A B ... or A B C A B C ...), the minimum of three runs; random weights, float32.

mowe ...   whisper-base size (20.6 M) as base, six weak encoders of a fifth of it, the mix of clip lengths. base: the
strong
           encoder alone. sparse: MoWE as it is. dense: all six weak encoders on all clips, then the same routing.
moe        15,000 frames of two streams, 8 experts, top-2, against a dense layer with the same active parameters; with
backward. packed     softmax gate over two frozen whisper-tiny encoders, the gate trained: clips padded to 30 s with
stock modules, against
           packed clips. A pair of frames is averaged to 25 Hz on both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import Step, machine, time_steps, wait_for_quiet
from rich.console import Console
from rich.table import Table
from setting import (
    as_float,
    clip_seconds,
    noise,
    our_micro_batches,
    stock_micro_batches,
    whisper_tiny,
)
from torch import Tensor, nn
from transformers import WhisperConfig, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.fusion.align import frames_at
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

    def listen(
        self, audio: Ragged, base: Ragged, chosen: list[Tensor], weights: list[Tensor], masks: Tensor | None
    ) -> list[Tensor]:
        frames = []
        for index, name in enumerate(self.pool):
            heard = self.run(name, audio, layers=False, masks=masks).frames
            frames.append(self.project[index](self.aligned(name, [heard], base.lengths)[0].values))
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
        nn.init.normal_(encoder.dependent.weigh.weight, std=3.0)  # clips spread over the pool
        if "weak frozen" in case:
            for name in pool:
                encoder.encoders[name].requires_grad_(False)
    seconds = clip_seconds("mix", count)
    clips = [torch.from_numpy(clip) for clip in noise(seconds)]
    batches = [Ragged.from_rows([clips[i] for i in own]) for own in our_micro_batches(seconds)]
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
    both = [whisper_tiny().eval().requires_grad_(False), whisper(384, 4, 6, 5).eval().requires_grad_(False)]
    torch.manual_seed(0)
    total = sum(frames_at(25.0, len(wave)) for wave in waves)
    if side == "packed":
        encoders = {f"e{i}": WhisperAudioEncoder(w) for i, w in enumerate(both)}
        encoder = FusedEncoder(encoders, GateFusion(("e0", "e1"), (384, 384), 384), 25.0).train()
        clips = [torch.from_numpy(wave) for wave in waves]
        batches = [Ragged.from_rows([clips[i] for i in own]) for own in our_micro_batches(seconds)]

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
        for own in stock_micro_batches(seconds):
            batch = [as_float(waves[i]) for i in own]
            mel = extractor(batch, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
            with torch.no_grad():
                states = [w(mel).last_hidden_state for w in both]
                streams = [state.flatten(0, 1).unflatten(0, (-1, 2)).mean(1) for state in states]
            fused = gate(streams)[0].unflatten(0, (len(own), -1))
            real = torch.arange(750)[None] < torch.tensor([[frames_at(25.0, len(wave))] for wave in batch])
            part = fused[real].square().sum() / total
            part.backward()
            loss += part.item()
        return {"loss": loss, "audio_seconds": sum(seconds)}

    return stock


PREPARE: dict[str, Callable[[str, str, int], Step]] = {"mowe": mowe, "moe": moe, "packed": packed}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one run of few clips, to see that it works")
    parser.add_argument("--cases", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--runs", type=int, help="fresh processes per side and case (default 3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, help="also write the JSON result to this file")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--clips", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.runs = arguments.runs or (1 if arguments.quick else 3)
    arguments.clips = arguments.clips or (QUICK_CLIPS if arguments.quick else CLIPS)
    return arguments


def child(case: str, side: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, "--side", side, "--cases", case, "--clips", str(arguments.clips)]
    threads = str(arguments.threads)
    done = subprocess.run(
        [*command, "--threads", threads],
        env={**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{case}, {side}: ended with code {done.returncode}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.side:
        case = arguments.cases[0]
        step = PREPARE[case.split()[0]](case, arguments.side, arguments.clips)
        print(json.dumps(time_steps(step, 2)))
        return
    console = Console(width=max(110, Console().width))
    result: dict[str, Any] = {"benchmark": "fusion", "machine": machine(arguments.threads)}
    result["quiet"] = arguments.quick or wait_for_quiet(console)
    result["cases"] = {}
    table = Table(title="fusion: seconds of a step, minimum of all runs")
    for column in ("case", "side", "seconds", "of the first side", "GiB"):
        table.add_column(column, justify="left" if column in ("case", "side") else "right", overflow="fold")
    for case in arguments.cases:
        sides = SIDES[case]
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for number in range(arguments.runs):
            for side in sides:
                runs[side].append(child(case, side, arguments))
                console.print(
                    f"{case}, run {number + 1}, {side}: {runs[side][-1]['seconds']:.3f} s", highlight=False
                )
        best = {side: min(run["seconds"] for run in rows) for side, rows in runs.items()}
        result["cases"][case] = {
            side: {
                "seconds": best[side],
                "runs": [run["seconds"] for run in runs[side]],
                "of_first": best[side] / best[sides[0]],
                "peak_gib": min(run["peak_gib"] for run in runs[side]),
            }
            for side in sides
        }
        for side, row in result["cases"][case].items():
            table.add_row(
                case, side, f"{row['seconds']:.3f}", f"{row['of_first']:.2f}x", f"{row['peak_gib']:.2f}"
            )
    console.print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
