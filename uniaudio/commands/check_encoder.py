"""``uniaudio check-encoder``: whether an encoder keeps its contract, tried on noise and silence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from uniaudio.build.encoders import load_encoder
from uniaudio.checks.encoder_contract import LENGTHS, Finding, check_contract
from uniaudio.config.encoders import EncoderConfig
from uniaudio.config.model_spec import parse_model_spec
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import make_console, make_table
from uniaudio.errors import UserError
from uniaudio.export.describe import describe_encoder
from uniaudio.export.onnx_file import find_stock_module
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.exported import find_part_class
from uniaudio.model.encoders.registry import FAMILIES, LEFT_OUT, load_audio_encoder
from uniaudio.model.encoders.towers import TowerAudioEncoder
from uniaudio.model.lora import CLIPPED, find_lora_targets
from uniaudio.model.rebuild import rebuild
from uniaudio.train.optim import LAYER
from uniaudio.types import SAMPLE_RATE

CLASS_NAME = re.compile(r"(?!random:)[A-Za-z_][\w.]*:(?!ema$)[A-Za-z_]\w*")  # module:Class
BEYOND = 31 * SAMPLE_RATE  # samples that most encoders cut


def show_findings(findings: list[Finding], name: str, console: Console | None = None) -> None:
    """Print the table.

    Raises:
        UserError: when a property does not hold.
    """
    table = make_table(f"encoder {name}", "property", "holds", "seen")
    for finding in findings:
        table.add_row(
            finding.name, Text("yes", "green") if finding.holds else Text("no", "red"), finding.seen
        )
    (console or make_console()).print(table)
    failed = [finding for finding in findings if not finding.holds]
    if failed:
        raise UserError(f"{name} does not meet the encoder interface: {failed[0].name} ({failed[0].seen})")


def list_support(encoder: AudioEncoder) -> list[tuple[str, str]]:
    """Return what can be done with an encoder, as pairs of name and answer."""
    has_graph = type(encoder).forward_padded is not AudioEncoder.forward_padded
    rows = [
        ("execution", describe_execution(encoder)),
        (
            "hidden states",
            f"{len(encoder.layer_dims)} of width {', '.join(map(str, sorted({*encoder.layer_dims})))}",
        ),
        ("masks of the spectrogram (SpecAugment)", "yes" if encoder.takes_masks else "no"),
        ("activation checkpointing (recompute)", "yes" if encoder.can_recompute() else "no"),
        ("train.compile", "its layers" if "layer" in vars(encoder) else "no"),
        ("one graph for padded clips (make_padded of an export)", "yes" if has_graph else "no"),
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


def describe_execution(encoder: AudioEncoder) -> str:
    """Return how the clips of a batch go through the layers."""
    if "layer" in vars(encoder):
        return "packed, no padding"
    if isinstance(encoder, TowerAudioEncoder):
        alone = encoder.calls_by_clip
        return "one clip after the other" if alone else "padded to the longest clip, with masks"
    return "padded or in pieces, inside the encoder"


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
        return (
            f"no: a copy built from its description differs in {len(changed)} tensors, such as {changed[0]}"
        )
    samples = [*LENGTHS, BEYOND]
    if [again.num_frames(n) for n in samples] != [encoder.num_frames(n) for n in samples]:
        return "no: a copy built from its description has a different number of frames"
    return ""


def describe_targets(names: list[str]) -> str:
    """Return the number of linear maps, and their last names."""
    last = sorted({name.removesuffix(CLIPPED).rsplit(".", 1)[-1] for name in names})
    return f"{len(names)} linear layers: {', '.join(last)}"


def show_support(encoder: AudioEncoder, name: str, console: Console) -> None:
    """Print what can be done with an encoder."""
    table = make_table(f"what {name} supports", "feature", "supported")
    for row in list_support(encoder):
        table.add_row(*row)
    console.print(table)


def list_families(console: Console | None = None) -> None:
    """Print the model types that are loaded, with the settings they take, and those that are not, with the reason."""
    console = console or make_console()
    known = make_table("supported encoders", "model_type", "settings")
    for family in {id(one): one for one in FAMILIES.values()}.values():
        types = [kind for kind, of_kind in FAMILIES.items() if of_kind is family]
        known.add_row(", ".join(types), ", ".join(family.settings) or "none")
    console.print(known)
    others = make_table("unsupported models with an audio part", "model_type", "reason")
    for kind, reason in LEFT_OUT.items():
        others.add_row(kind, reason)
    console.print(others)


def check_encoder(spec: str, kind: str, trust: Trust = NO_TRUST) -> None:
    """Load an encoder by run folder, checkpoint, model folder or Hub name, and print its tables.

    Args:
        kind: as in a config; of ``module:Class``, ``spec`` is the path that it gets, or empty.

    Raises:
        UserError: when it cannot be loaded or a property does not hold.
    """
    if kind == "auto":
        if CLASS_NAME.fullmatch(spec) and not Path(spec).exists():
            raise UserError(
                f"{spec}: a class of your own is checked by `--kind {spec} --allow-code`, without a MODEL"
            )
        encoder = load_encoder(spec, trust=trust)
    elif ":" in kind:
        encoder = load_audio_encoder(EncoderConfig(kind=kind, path=spec), spec or kind, trust=trust)
    else:
        model = parse_model_spec(spec)
        settings = model.configure_model(trust.remote_code).model_copy(update={"kind": kind})
        encoder = load_audio_encoder(settings, model.path, trust=trust)
    console, name = make_console(), spec or kind
    show_support(encoder, name, console)
    show_findings(check_contract(encoder), name, console)
