"""Memory, exchanges, efficiency and storage of training on 8 to 512 GPUs, computed: the tables of docs/scaling.md.

    python benchmarks/scaling_estimate.py

Units: bytes, seconds, FLOPs; "audio-s" are seconds of audio. The page states the assumptions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from transformers import Qwen3Config, WhisperConfig

from uniaudio.estimate import flops
from uniaudio.units import GIB

GB, MIB = 1e9, 2**20
ENCODERS = {"8M": 8.2e6, "39M": 39e6, "88M": 88.2e6, "307M": 307e6, "635M": 635e6}
DECODERS = {"0.6B": 0.596e9, "1.7B": 1.72e9, "4B": 4.02e9, "8B": 8.19e9}
P = ENCODERS["635M"]
# bytes on one of n GPUs for p trained and b frozen parameters; FSDP2 is as ZeRO-3
STATE: Mapping[str, Callable[[float, float, int], float]] = {
    "DDP": lambda p, b, n: 16 * p + 2 * b,
    "ZeRO-1": lambda p, b, n: 8 * p + 12 * p / n + 2 * b,
    "ZeRO-2": lambda p, b, n: 4 * p + 16 * p / n + 2 * b,
    "ZeRO-3": lambda p, b, n: (16 * p + 2 * b) / n,
}
# bytes that a GPU sends in a step of one micro-batch; ZeRO-2 is as ZeRO-1, and DeepSpeed all-reduces in both
SENT: Mapping[str, Callable[[float, int], float]] = {
    "DDP": lambda b, n: 8 * P * (n - 1) / n,
    "ZeRO-1": lambda b, n: (8 + 4) * P * (n - 1) / n,
    "ZeRO-3": lambda b, n: (12 * P + 4 * b) * (n - 1) / n,
}
FLOPS = 0.40 * 794.5e12  # of one GPU, at the assumed utilisation
MEMORY = 72 * GIB  # of 79.6; the rest is for CUDA, NCCL and fragments
ACTIVATIONS = {"0.6B": 92 * MIB, "8B": 158 * MIB}  # for one second of audio
OVERLAP = 0.9  # share of the compute beside it that can hide an exchange
UNEVEN = {1: 1.0, 8: 1.05, 16: 1.07, 64: 1.11, 512: 1.11}  # cost of the busiest rank over the mean
HBM, AGREE = 2.7e12, 0.002  # bytes/s for AdamW; seconds for the sums that all ranks agree on
NODE = {"400G a GPU": 8 * 50e9 * 0.8, "400G a node": 50e9 * 0.8}  # bytes/s out of a node
SIZES = (("0.6B", 600.0), ("8B", 280.0))  # decoders, and audio-s of a micro-batch
FLAC, SAMPLES = 17.6e3, 32e3  # bytes of one audio-s at 16 kHz
DECODED = {"FLAC": 4800, "MP3": 1177, "Opus": 460}  # audio-s that a core decodes in a second

whisper = WhisperConfig(d_model=1280, encoder_layers=32, encoder_ffn_dim=5120, num_mel_bins=128)
same = {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
qwen = {
    "0.6B": Qwen3Config(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, intermediate_size=3072, **same
    ),
    "8B": Qwen3Config(
        hidden_size=4096, num_hidden_layers=36, num_attention_heads=32, intermediate_size=12288, **same
    ),
}


def count_flops_per_second(decoder: str) -> tuple[float, float]:
    """Return the FLOPs of encoder and decoder for one audio-s: 12 s clips, 12.5 tokens/s, 24 + 40 tokens of text."""
    read = flops.count_decoder_flops(qwen[decoder], 150 + 64) + flops.count_head_flops(qwen[decoder], 40)
    return 3 * flops.count_whisper_flops(whisper, 12) / 12, 2 * read / 12


def estimate_step(
    engine: str, decoder: str, n: int, wire: str, seconds: float, levelled: bool = False
) -> tuple[float, float, float]:
    """Return the seconds of the exchange, of the part of it that is not hidden, and of the whole step.

    Args:
        n: GPUs. wire: key of ``NODE``, or any other text within a node. seconds: of audio in a micro-batch.
        levelled: all ranks have equal work.
    """
    encoder, reader = (seconds * f / FLOPS for f in count_flops_per_second(decoder))
    exchange = SENT[engine](DECODERS[decoder], n) / min(350e9, NODE.get(wire, 350e9))
    beside = {"DDP": encoder * 2 / 3, "ZeRO-1": 0, "ZeRO-3": encoder + reader}[engine]
    bare = max(0.05 * exchange, exchange - OVERLAP * beside)
    compute = (encoder + reader) * (1 if levelled else UNEVEN[n])
    adamw = 28 * P / (1 if engine == "DDP" else n) / HBM
    return exchange, bare, compute + bare + adamw + (AGREE if n > 1 else 0)


def estimate_rate(n: int, decoder: str, seconds: float) -> float:
    """Return the audio-s that all GPUs read in a second under DDP."""
    return n * seconds / estimate_step("DDP", decoder, n, "400G a GPU", seconds)[-1]


def print_memory() -> None:
    """Print trained state by engine at 8 GPUs, and the largest micro-batch."""
    print("GB of trained state per GPU at 8 GPUs:", *ENCODERS)
    for engine, state in STATE.items():
        room = (f"{d} {(MEMORY - state(P, DECODERS[d], 8) - 2 * P) / a:.0f}" for d, a in ACTIVATIONS.items())
        print(
            f"{engine:7}",
            *(f"{state(p, 0, 8) / GB:6.2f}" for p in ENCODERS.values()),
            "  largest micro-batch with 635M, audio-s:",
            *room,
        )


def print_steps(networks: Sequence[tuple[int, str]]) -> None:
    """Print exchange, step and efficiency by network and engine, and what 64 GPUs read."""
    for decoder, seconds in SIZES:
        alone = estimate_step("DDP", decoder, 1, "", seconds)[-1]
        encoder, reader = count_flops_per_second(decoder)
        print(
            f"\n635M + {decoder}: {encoder / 1e9:.1f} + {reader / 1e9:.1f} GFLOP a second of audio,"
            f" {seconds:.0f} audio-s a GPU and step; one GPU {alone * 1e3:.0f} ms"
            "\nGPUs network      engine  sent GB  exchange ms  bare ms"
            "  step ms  efficiency  levelled"
        )
        for n, wire in networks:
            for engine, sent in SENT.items():
                exchange, bare, whole = estimate_step(engine, decoder, n, wire, seconds)
                level = estimate_step(engine, decoder, n, wire, seconds, levelled=True)[-1]
                print(
                    f"{n:4} {wire:12} {engine:7} {sent(DECODERS[decoder], n) / GB:7.1f} {exchange * 1e3:12.0f}"
                    f" {bare * 1e3:8.0f} {whole * 1e3:8.0f} {alone / whole:11.2f} {alone / level:9.2f}"
                )
        rate = estimate_rate(64, decoder, seconds)
        cores = ", ".join(f"{kind} {rate / speed:.0f}" for kind, speed in DECODED.items())
        print(
            f"supply of 64 GPUs (DDP, 400G a GPU): {rate:,.0f} audio-s/s; GB/s as FLAC {rate * FLAC / GB:.2f}, as int16"
            f" {rate * SAMPLES / GB:.2f}; cores for {cores}"
        )


def print_fixed_batch(networks: Sequence[tuple[int, str]]) -> None:
    """Print the efficiency of one global batch on more GPUs, and the cost of checkpoints."""
    print("\nglobal batch of 4,800 audio-s whatever the number of GPUs (DDP, 0.6B)")
    alone = estimate_step("DDP", "0.6B", 1, "", 4800)[-1]
    for n, wire in networks:
        whole = estimate_step("DDP", "0.6B", n, wire, 4800 / n)[-1]
        print(
            f"{n:4} {wire:12} {4800 / n:3.0f} audio-s a GPU, step {whole * 1e3:3.0f} ms,"
            f" efficiency {alone / n / whole:.2f}"
        )
    save, whole = 12 * P / GB, estimate_step("DDP", "0.6B", 64, "400G a GPU", 600)[-1]  # at 1 GB/s
    shares = (f"every {k} steps {save / (save + k * whole):.1%};" for k in (500, 2000))
    print(f"checkpoint {save:.1f} GB:", *shares)


def print_large_runs() -> None:
    """Print efficiency, reading and checkpoints of 64 and 512 GPUs."""
    print("\n64 and 512 GPUs, 8 a node")
    for decoder, seconds in SIZES:
        alone = estimate_step("DDP", decoder, 1, "", seconds)[-1]
        for n, wire in ((n, wire) for n in (64, 512) for wire in NODE):
            shown = (
                f"{engine} {sent(DECODERS[decoder], n) / GB:.1f} GB"
                f" {alone / estimate_step(engine, decoder, n, wire, seconds)[-1]:.2f}"
                for engine, sent in SENT.items()
            )
            print(f"{decoder:4} {n:4} {wire:12}", *shown)
    for n in (64, 512):
        rate = estimate_rate(n, "0.6B", 600)
        size, clips = rate * FLAC, rate / 12  # bytes/s and clips/s
        tars = size / 256e6
        print(
            f"{n:4} GPUs read {rate:,.0f} audio-s/s, {size / GB:.1f} GB/s: {clips:,.0f} clips/s"
            f" ({clips * 3600 * 4e-7:.1f} $/h), {tars:.0f} tars/s ({tars * 3600 * 4e-7:.2f} $/h),"
            f" {rate / DECODED['FLAC']:.0f} cores"
        )
        each = 8 * P / n  # bytes of moments that a process writes; the main one writes 4 P of weights, too
        print(
            f"     checkpoint: {each / 1e6:.0f} MB a process; {12 * P / 1e9:.1f} s at 1 GB/s,"
            f" {(4 * P + each) / 1e9:.1f} s where each writes 1 GB/s and all together 10"
        )


def main() -> None:
    """Print all tables."""
    networks = [(8, "one node"), *((n, wire) for n in (16, 64) for wire in NODE)]
    print_memory()
    print_steps(networks)
    print_fixed_batch(networks)
    print_large_runs()


if __name__ == "__main__":
    main()
