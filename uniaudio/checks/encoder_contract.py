"""The contract of encoders, tried property by property on noise."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch

from uniaudio.errors import escape_text, read_first_line
from uniaudio.model.encoders.base import AudioEncoder, find_device
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE, Encoded

LENGTHS = (1, 159, 160, 399, 400, 401, 719, 720, 7_777, 16_000, 16_001, 23_456, 40_000)  # samples
BATCH = (16_000, 1, 7_777, 23_456)
RATE_SLACK = 0.05  # of the stated frame rate; encoders differ by a frame at the end
EXACT = 1e-4  # of the largest value, in float32
ROUGH = 0.25  # mean difference of bfloat16, relative to the mean size; routes may flip


@dataclass(frozen=True)
class Finding:
    """One property, whether it holds, and what was seen."""

    name: str
    holds: bool
    seen: str


def make_noise_clips(*lengths: int) -> Ragged:
    """Return int16 noise, a function of the length alone."""
    rows = [
        (torch.randn(n, generator=torch.Generator().manual_seed(n)) * 3000).to(torch.int16) for n in lengths
    ]
    return Ragged.from_rows(rows)


def check_contract(encoder: AudioEncoder) -> list[Finding]:
    """Try every property of ``AudioEncoder``'s contract; the encoder is left as it was."""
    encoder = copy.deepcopy(encoder).eval()
    properties: dict[str, Callable[[AudioEncoder], str]] = {
        "widths and frame rate are stated correctly": check_attributes,
        "num_frames gives the actual number of frames": check_frame_counts,
        "the frames of a clip do not depend on its batch": check_batch_invariance,
        "hidden states": check_hidden_states,
        "silence and empty batches give valid frames": check_silence,
        "two passes give the same frames": check_determinism,
        "gradients reach all trained parameters": check_gradients,
        "runs in bfloat16": check_bfloat16,  # last: it casts the encoder
    }
    findings = []
    for name, holds in properties.items():
        try:
            findings.append(Finding(name, True, holds(encoder)))
        except Exception as problem:  # an encoder may raise anything
            findings.append(Finding(name, False, escape_text(read_first_line(problem))))
    return findings


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


@torch.no_grad()
def run(encoder: AudioEncoder, *lengths: int, layers: bool = False) -> Encoded:
    encoded: object = encoder(make_noise_clips(*lengths).to(find_device(encoder)), layers=layers)
    if not isinstance(encoded, Encoded):
        raise AssertionError(f"forward returns {type(encoded).__name__}, not Encoded")
    return encoded


def check_attributes(encoder: AudioEncoder) -> str:
    """Check what is stated against 30 s of sound."""
    require(
        encoder.layer_dims[-1] == encoder.dim,
        f"layer_dims end in {encoder.layer_dims[-1]}, dim is {encoder.dim}",
    )
    frames = encoder.num_frames(30 * SAMPLE_RATE)
    stated = 30 * encoder.frame_rate
    require(
        abs(frames - stated) <= max(1, RATE_SLACK * stated),
        f"num_frames says {frames} for 30 s, frame_rate {encoder.frame_rate:g} says {stated:g}",
    )
    reach = "the whole clip" if encoder.reach is None else f"{encoder.reach:g} s"
    return f"{encoder.dim} wide, {encoder.frame_rate:g} frames per second, reach {reach}"


def check_frame_counts(encoder: AudioEncoder) -> str:
    """Compare the formula with what comes out, also beyond the reach."""
    beyond = [round((encoder.reach or 2) * 1.3 * SAMPLE_RATE)] if (encoder.reach or 2) <= 30 else []
    for samples in (*LENGTHS, *beyond):
        frames = run(encoder, samples).frames
        require(
            len(frames.values) == encoder.num_frames(samples) >= 1,
            f"{samples} samples: num_frames says {encoder.num_frames(samples)}, there are {len(frames.values)}",
        )
    return f"{len(LENGTHS) + len(beyond)} lengths"


def check_batch_invariance(encoder: AudioEncoder) -> str:
    """Compare every clip alone with the same clip among others."""
    worst = measure_batch_effect(encoder)
    require(
        worst <= EXACT, f"a clip alone differs from the clip in a batch by {worst:.1e} of its largest value"
    )
    return f"relative difference {worst:.1e}"


def measure_batch_effect(encoder: AudioEncoder) -> float:
    """Return how much a clip alone differs from the same clip among others, relative to its largest value, or NaN."""
    effects = []
    for samples, frames in zip(BATCH, run(encoder, *BATCH).frames.rows(), strict=True):
        alone = run(encoder, samples).frames.values
        effects.append((alone - frames).abs().max() / alone.abs().max().clamp(min=1e-6))
    return float(torch.stack(effects).max())  # NaN stays NaN, unlike in max() of Python


def check_hidden_states(encoder: AudioEncoder) -> str:
    """Check number, widths and lengths of the hidden states."""
    encoded = run(encoder, *BATCH, layers=True)
    require(encoded.layers is not None, "layers=True returned no layers")
    assert encoded.layers is not None
    widths = tuple(state.values.shape[1] for state in encoded.layers)
    require(widths == encoder.layer_dims, f"they are {widths} wide, layer_dims says {encoder.layer_dims}")
    for state in encoded.layers:
        require(
            torch.equal(state.lengths, encoded.frames.lengths),
            "their lengths differ from those of the frames",
        )
    require(
        torch.equal(encoded.layers[-1].values, encoded.frames.values),
        "the last layer is not equal to the frames",
    )
    return f"{len(widths)} layers"


@torch.no_grad()
def check_silence(encoder: AudioEncoder) -> str:
    """Check that nothing breaks on zeros and on an empty batch."""
    device = find_device(encoder)
    quiet = Ragged(torch.zeros(8_000, dtype=torch.int16, device=device), torch.tensor([8_000]))
    require(bool(encoder(quiet).frames.values.isfinite().all()), "silence gives values that are not finite")
    none = Ragged(torch.zeros(0, dtype=torch.int16, device=device), torch.zeros(0, dtype=torch.int64))
    encoded = encoder(none, layers=True)
    shapes = [tuple(state.values.shape) for state in (encoded.frames, *(encoded.layers or ()))]
    require(
        shapes == [(0, width) for width in (encoder.dim, *encoder.layer_dims)],
        f"an empty batch gives frames and hidden states of the shapes {shapes}",
    )
    return "finite, empty"


def check_determinism(encoder: AudioEncoder) -> str:
    """Check that eval mode has nothing random."""
    one, other = (run(encoder, 16_000).frames.values for _ in range(2))
    require(torch.equal(one, other), "two passes in eval mode differ")
    return "equal"


def check_gradients(encoder: AudioEncoder) -> str:
    """Check that every trained parameter gets a finite gradient, and not all of them zero."""
    trained = {name: p for name, p in encoder.named_parameters() if p.requires_grad}
    if not trained:
        return "nothing is trained"
    device = next(iter(trained.values())).device
    encoder.zero_grad(set_to_none=True)
    encoder.train()
    width = getattr(encoder, "prompt_dim", None)  # of a router that reads the question
    given = {} if width is None else {"prompts": torch.randn(len(BATCH), width, device=device)}
    frames = encoder(make_noise_clips(*BATCH).to(device), **given).frames.values
    require(frames.requires_grad, "the frames have no gradient; compute them without no_grad and detach")
    direction = torch.randn(frames.shape, generator=torch.Generator().manual_seed(0)).to(frames)
    (frames * direction).sum().backward()
    encoder.eval()
    without = [name for name, p in trained.items() if p.grad is None]
    require(not without, f"{len(without)} parameters get no gradient, such as {', '.join(without[:3])}")
    broken = [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
    require(not broken, f"the gradient of {', '.join(broken[:3])} is not finite")
    moved = sum(
        bool(p.grad.abs().max() > 0) for p in trained.values() if p.grad is not None and p.grad.numel()
    )
    require(moved > 0, "all gradients are zero")
    return f"{moved} of {len(trained)} parameters get a gradient"


def check_bfloat16(encoder: AudioEncoder) -> str:
    """Compare bfloat16 weights with the same in float32."""
    exact = run(encoder, 16_000).frames.values.float()
    rough = run(encoder.to(torch.bfloat16), 16_000).frames.values
    require(rough.dtype == torch.bfloat16, f"the frames are {rough.dtype}")
    away = float((rough.float() - exact).abs().mean() / exact.abs().mean().clamp(min=1e-6))
    require(away <= ROUGH, f"the frames differ from float32 by {away:.2f} of their norm")
    return f"mean relative difference {away:.3f}"
