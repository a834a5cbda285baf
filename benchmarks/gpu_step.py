"""The full training step against the stock way: the mix of clip lengths, and every length by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gpu_models import (
    Clips,
    answer_length,
    clips_of,
    new_engine,
    new_model,
    our_batch,
    our_step,
    stock_step,
    useful_flops,
)
from gpu_timing import Setting, fastest, first_that_fits, free, peak_gib
from sizes import qwen3_config, whisper_config

from uniaudio.estimate import flops
from uniaudio.model.audio_lm import AudioLM, cast_to_audio_lm
from uniaudio.train.engines.base import Engine

Row = dict[str, Any]
MEASURED, SPECIFIED = (
    794.5e12,
    989e12,
)  # operations per second of an H200 in bfloat16: matrix products, data sheet
STOCK_CLIPS = (40, 32, 24, 16, 8, 4)  # micro-batches that are tried, most first
HALVES = 4  # how often a budget that does not fit is halved
EXPECTED = 270e12  # operations per second, for careful estimates of how long a row takes
SECTION_7 = {"0.6B": 240.1e9, "1.7B": 311.3e9}  # operations for a second of audio: docs/performance.md
AGREEMENT = {"loss": 1e-3, "norm": 2e-2}  # relative, of both sides at 30 s, where they compute the same


def modelled(setting: Setting) -> Iterator[Row]:
    """Yield the operations for a second of audio as modelled: 12 s clips, 24 tokens of prompt, 40 of answer."""
    encoder = whisper_config("large-v3")
    for name, expected in SECTION_7.items():
        config = qwen3_config(name)
        tokens = 150 + 24 + 40
        frozen = flops.count_decoder_flops(config, tokens) + flops.count_head_flops(config, 40)
        total = flops.TRAINED * flops.count_whisper_flops(encoder, 12) + flops.FROZEN_BELOW_GRADIENT * frozen
        yield {
            "name": f"large-v3 + {name}, 12 s clips",
            "GFLOP per audio-s": total / 12e9,
            "by hand": expected / 1e9,
            "verdict": "same" if abs(total / 12 / expected - 1) < 0.02 else "DIFFERENT",
        }


def on_the_mix(setting: Setting) -> Iterator[Row]:
    """Yield a row for every decoder: full steps on the mix of lengths."""
    for decoder in setting.decoders:
        yield from compared(setting, decoder, ("mix",))


def by_length(setting: Setting) -> Iterator[Row]:
    """Yield a row for every length of clips, the first decoder first."""
    for decoder in setting.decoders:
        yield from compared(setting, decoder, setting.lengths)


def compared(setting: Setting, decoder: str, cases: tuple[float | str, ...]) -> Iterator[Row]:
    """Yield both sides of every case, as long as the clock allows."""
    free(setting.device)
    model = new_model(setting, decoder)
    engine = new_engine(setting, model)
    for case in cases:
        name = f"{setting.encoder} + {decoder}, {case if case == 'mix' else f'{case:g} s'}"
        clips = clips_of(case, setting.budget, model.decoder.vocabulary)
        needed = step_seconds(setting, model, clips)
        if setting.clock.left < needed:
            yield {"name": name, "verdict": f"left out: needs about {needed:.0f} s"}
            continue
        ours, stock = our_side(setting, engine, clips), stock_side(setting, engine, clips)
        row = {"name": name, "case": str(case), "decoder": decoder, **side_by_side(ours, stock)}
        if case == 30.0:
            row |= agreement(setting, engine, clips.first(stock["micro_batch"]))
        yield row


def step_seconds(setting: Setting, model: AudioLM, clips: Clips) -> float:
    """Return about how long both sides of a case take on an H200."""
    steps = setting.warm_up + setting.runs
    ours = useful_flops(model, clips.lengths)
    count = len(clips.examples) if len(set(clips.lengths)) > 1 else min(len(clips.examples), STOCK_CLIPS[1])
    stock = useful_flops(model, [30.0] * count)
    return steps * (ours + stock) / EXPECTED


def our_side(setting: Setting, engine: Engine, clips: Clips) -> Row:
    """Time full steps over one micro-batch, of half the clips where they do not fit."""

    def attempt(count: int) -> Row:
        micro_batches = clips.every(len(clips.examples) // count)
        free(setting.device)
        step = our_step(engine, our_batch(cast_to_audio_lm(engine.plain), micro_batches), setting.device)
        seconds = fastest(step, setting)
        return figures(setting, engine, micro_batches, seconds)

    whole = len(clips.examples)
    _, row = first_that_fits([max(1, whole >> i) for i in range(HALVES + 1)], attempt, setting.device)
    return row


def stock_side(setting: Setting, engine: Engine, clips: Clips) -> Row:
    """Time full steps the stock way, in micro-batches of as many clips as fit, or of half as many if that is faster.

    All clips of a mix count, in several micro-batches; of clips of one length one micro-batch does, because all are
    the same.
    """
    mixed = len(set(clips.lengths)) > 1

    def attempt(count: int) -> Row:
        micro_batches = clips if mixed else clips.first(count)
        free(setting.device)
        seconds = fastest(stock_step(engine, micro_batches, count, setting.device), setting)
        return {**figures(setting, engine, micro_batches, seconds), "micro_batch": count}

    whole = len(clips.examples)
    most = [count for count in (whole, *STOCK_CLIPS) if count <= min(whole, STOCK_CLIPS[0])]
    count, row = first_that_fits(most, attempt, setting.device)
    rows = [row, attempt(count // 2)] if mixed and count > 1 else [row]
    return max(rows, key=lambda row: row["hours"])


def figures(setting: Setting, engine: Engine, clips: Clips, seconds: float) -> Row:
    """Return the figures of one side."""
    operations = useful_flops(cast_to_audio_lm(engine.plain), clips.lengths)
    return {
        "seconds": seconds,
        "clips": len(clips.examples),
        "audio_seconds": clips.seconds,
        "hours": clips.seconds / seconds,  # audio-seconds per second are audio-hours per hour
        "flops": operations / seconds,
        "answers": sum(answer_length(length) for length in clips.lengths) / seconds,
        "peak_gib": peak_gib(setting.device),
    }


def side_by_side(ours: Row, stock: Row) -> Row:
    """Return one row about both sides."""
    return {
        "audio-h/GPU-h": ours["hours"],
        "TFLOP/s": ours["flops"] / 1e12,
        "of 794.5": f"{ours['flops'] / MEASURED:.1%}",
        "of 989": f"{ours['flops'] / SPECIFIED:.1%}",
        "GiB": ours["peak_gib"],
        "step s": ours["seconds"],
        "stock audio-h/GPU-h": stock["hours"],
        "stock clips": stock["micro_batch"],
        "stock GiB": stock["peak_gib"],
        "times": ours["hours"] / stock["hours"],
        "ours": ours,
        "stock": stock,
    }


def agreement(setting: Setting, engine: Engine, clips: Clips) -> Row:
    """Compare loss and norm of the gradient of both sides over the same clips of 30 s, relative to the stock ones."""
    batch = our_batch(cast_to_audio_lm(engine.plain), clips)
    loss, norm = our_step(engine, batch, setting.device)()
    stock_loss, stock_norm = stock_step(engine, clips, len(clips.examples), setting.device)()
    off = {"loss": abs(float(loss / stock_loss) - 1), "norm": abs(norm / stock_norm - 1)}
    same = all(off[name] <= allowed for name, allowed in AGREEMENT.items())
    differences = {f"{name} differs by": value for name, value in off.items()}
    return {**differences, "verdict": "same" if same else "DIFFERENT"}
