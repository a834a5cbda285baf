"""``uniaudio check-encoder``: whether an encoder keeps its contract, tried on noise and silence."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from uniaudio.build.encoders import load_encoder
from uniaudio.config.model_spec import parse_model_spec
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import make_console
from uniaudio.errors import UserError
from uniaudio.export.describe import describe_encoder
from uniaudio.export.onnx_file import find_stock_module
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.exported import find_part_class
from uniaudio.model.encoders.registry import FAMILIES, LEFT_OUT, load_audio_encoder
from uniaudio.model.encoders.towers import TowerAudioEncoder
from uniaudio.model.lora import CLIPPED, find_lora_targets
from uniaudio.model.rebuild import rebuild
from uniaudio.ragged import Ragged
from uniaudio.train.optim import LAYER
from uniaudio.types import SAMPLE_RATE, Encoded

LENGTHS = (1, 159, 160, 399, 400, 401, 719, 720, 7_777, 16_000, 16_001, 23_456, 40_000)  # samples
BEYOND = 31 * SAMPLE_RATE  # samples that most encoders cut
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
        "widths and rate are stated": check_attributes,
        "num_frames is the real number": check_frame_counts,
        "a clip does not see its batch": check_batch_invariance,
        "hidden states": check_hidden_states,
        "silence and no clips": check_silence,
        "the same twice": check_determinism,
        "gradients reach what is trained": check_gradients,
        "runs in bfloat16": check_bfloat16,  # last: it casts the encoder
    }
    findings = []
    for name, holds in properties.items():
        try:
            findings.append(Finding(name, True, holds(encoder)))
        except (AssertionError, RuntimeError, ValueError, TypeError, AttributeError, IndexError) as problem:
            findings.append(
                Finding(name, False, str(problem).strip().splitlines()[0] if str(problem) else repr(problem))
            )
    return findings


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


@torch.no_grad()
def run(encoder: AudioEncoder, *lengths: int, layers: bool = False) -> Encoded:
    device = next(encoder.parameters()).device
    encoded: Encoded = encoder(make_noise_clips(*lengths).to(device), layers=layers)
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
    worst = 0.0
    for samples, frames in zip(BATCH, run(encoder, *BATCH).frames.rows(), strict=True):
        alone = run(encoder, samples).frames.values
        worst = max(worst, float((alone - frames).abs().max() / alone.abs().max().clamp(min=1e-6)))
    require(
        worst <= EXACT, f"a clip alone differs from the clip in a batch by {worst:.1e} of its largest value"
    )
    return f"relative difference {worst:.1e}"


def check_hidden_states(encoder: AudioEncoder) -> str:
    """Check number, widths and lengths of the hidden states."""
    encoded = run(encoder, *BATCH, layers=True)
    require(encoded.layers is not None, "layers=True gave no layers")
    assert encoded.layers is not None
    widths = tuple(state.values.shape[1] for state in encoded.layers)
    require(widths == encoder.layer_dims, f"they are {widths} wide, layer_dims says {encoder.layer_dims}")
    for state in encoded.layers:
        require(
            torch.equal(state.lengths, encoded.frames.lengths), "they differ from the frames in their lengths"
        )
    require(torch.equal(encoded.layers[-1].values, encoded.frames.values), "the last ones are not the frames")
    return f"{len(widths)} of them"


@torch.no_grad()
def check_silence(encoder: AudioEncoder) -> str:
    """Check that nothing breaks on zeros and on an empty batch."""
    device = next(encoder.parameters()).device
    quiet = Ragged(torch.zeros(8_000, dtype=torch.int16, device=device), torch.tensor([8_000]))
    require(bool(encoder(quiet).frames.values.isfinite().all()), "silence gives values that are not finite")
    none = Ragged(torch.zeros(0, dtype=torch.int16, device=device), torch.zeros(0, dtype=torch.int64))
    shape = tuple(encoder(none).frames.values.shape)
    require(shape == (0, encoder.dim), f"no clips give frames of shape {shape}")
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
    frames = encoder(make_noise_clips(*BATCH).to(device)).frames.values
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
    return f"{moved} of {len(trained)} parameters move"


def check_bfloat16(encoder: AudioEncoder) -> str:
    """Compare bfloat16 weights with the same in float32."""
    exact = run(encoder, 16_000).frames.values.float()
    rough = run(encoder.to(torch.bfloat16), 16_000).frames.values
    require(rough.dtype == torch.bfloat16, f"the frames are {rough.dtype}")
    away = float((rough.float() - exact).abs().mean() / exact.abs().mean().clamp(min=1e-6))
    require(away <= ROUGH, f"the frames differ from float32 by {away:.2f} of their size")
    return f"mean relative difference {away:.3f}"


def show_findings(findings: list[Finding], name: str, console: Console | None = None) -> None:
    """Print the table.

    Raises:
        UserError: when a property does not hold.
    """
    table = Table(title=f"encoder {name}", title_justify="left")
    for column in ("property", "holds", "seen"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        table.add_row(
            finding.name, Text("yes", "green") if finding.holds else Text("no", "red"), finding.seen
        )
    (console or make_console()).print(table)
    failed = [finding for finding in findings if not finding.holds]
    if failed:
        raise UserError(f"{name} does not keep the contract: {failed[0].name} ({failed[0].seen})")


def list_support(encoder: AudioEncoder) -> list[tuple[str, str]]:
    """Return what can be done with an encoder, as pairs of name and answer."""
    rows = [
        ("execution", describe_execution(encoder)),
        (
            "hidden states",
            f"{len(encoder.layer_dims)} of width {', '.join(map(str, sorted({*encoder.layer_dims})))}",
        ),
        ("masks of the spectrogram (SpecAugment)", "yes" if encoder.takes_masks else "no"),
        ("activation checkpointing (recompute)", "yes" if encoder.can_recompute() else "no"),
        ("train.compile", "its layers" if "layer" in vars(encoder) else "no"),
        (
            "one graph for padded clips (make_padded of an export)",
            "yes" if has_padded_forward(encoder) else "no",
        ),
        ("layer decay", describe_layers(encoder)),
    ]
    answers = {
        "LoRA, targets: qkv": lambda: describe_targets(find_lora_targets(encoder, "qkv")),
        "LoRA, targets: all": lambda: describe_targets(find_lora_targets(encoder, "all")),
        "export --to hf": lambda: explain_rebuilding(encoder) or "yes",
        "export --to onnx": lambda: "yes" if find_stock_module(encoder) else "no",
    }
    for name, answer in answers.items():
        try:
            rows.append((name, answer()))
        except UserError as problem:
            rows.append((name, f"no: {problem}"))
    return rows


def has_padded_forward(encoder: AudioEncoder) -> bool:
    """Return whether an encoder has a graph for padded clips."""
    return type(encoder).forward_padded is not AudioEncoder.forward_padded


def describe_execution(encoder: AudioEncoder) -> str:
    """Return how the clips of a batch go through the layers."""
    if "layer" in vars(encoder):
        return "packed, no padding"
    if isinstance(encoder, TowerAudioEncoder):
        padded = encoder.takes_padding
        return "padded to the longest clip, with masks" if padded else "one clip after the other"
    return "padded or in pieces, inside of the encoder"


def describe_layers(encoder: AudioEncoder) -> str:
    """Return the number of layers that have learning rates of their own."""
    numbers = {int(match[1]) for name, _ in encoder.named_parameters() if (match := LAYER.search(f".{name}"))}
    return f"{len(numbers)} layers" if numbers else "no numbered layers"


def explain_rebuilding(encoder: AudioEncoder) -> str:
    """Return why an exported folder could not hold an encoder, or an empty text.

    What a folder has of it is a description in JSON, which must make the same modules again, here without weights.

    Raises:
        UserError: when it cannot be described, see ``describe_encoder``.
    """
    written = json.dumps(describe_encoder(encoder))
    with torch.device("meta"):
        again = rebuild(json.loads(written), find_part_class)
    wanted, shapes = (
        {name: tensor.shape for name, tensor in one.state_dict().items()} for one in (encoder, again)
    )
    changed = [name for name in sorted({*wanted, *shapes}) if wanted.get(name) != shapes.get(name)]
    if changed:
        return f"no: {len(changed)} tensors differ in what its description makes, such as {changed[0]}"
    samples = [*LENGTHS, BEYOND]
    if [again.num_frames(n) for n in samples] != [encoder.num_frames(n) for n in samples]:
        return "no: what its description makes has other numbers of frames"
    return ""


def describe_targets(names: list[str]) -> str:
    """Return the number of linear maps, and their last names."""
    last = sorted({name.removesuffix(CLIPPED).rsplit(".", 1)[-1] for name in names})
    return f"{len(names)} linear maps: {', '.join(last)}"


def show_support(encoder: AudioEncoder, name: str, console: Console) -> None:
    """Print what can be done with an encoder."""
    table = Table(title=f"what {name} supports", title_justify="left")
    table.add_column("feature", overflow="fold")
    table.add_column("supported", overflow="fold")
    for row in list_support(encoder):
        table.add_row(*row)
    console.print(table)


def list_families(console: Console | None = None) -> None:
    """Print the model types that are loaded, with the settings they take, and those that are not, with the reason."""
    console = console or make_console()
    known = Table(title="encoders that are loaded", title_justify="left")
    for column in ("model_type", "settings"):
        known.add_column(column, overflow="fold")
    for family in {id(one): one for one in FAMILIES.values()}.values():
        types = [kind for kind, of_kind in FAMILIES.items() if of_kind is family]
        known.add_row(", ".join(types), ", ".join(family.settings) or "none")
    console.print(known)
    others = Table(title="models with an audio part that are not", title_justify="left")
    for column in ("model_type", "reason"):
        others.add_column(column, overflow="fold")
    for kind, reason in LEFT_OUT.items():
        others.add_row(kind, reason)
    console.print(others)


def check_encoder(spec: str, kind: str, trust: Trust = NO_TRUST) -> None:
    """Load an encoder by run folder, checkpoint, model folder or Hub name, or ``module:Class``, and print its tables.

    Raises:
        UserError: when it cannot be loaded or a property does not hold.
    """
    if kind == "auto":
        encoder = load_encoder(spec, trust=trust)
    else:
        model = parse_model_spec(spec)
        settings = model.configure_model(trust.remote_code).model_copy(update={"kind": kind})
        encoder = load_audio_encoder(settings, model.path, trust=trust)
    console = make_console()
    show_support(encoder, spec, console)
    show_findings(check_contract(encoder), spec, console)
