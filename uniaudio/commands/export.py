"""``uniaudio export``: a checkpoint's encoder for transformers, for benchmark suites, as ONNX; or all of it."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from uniaudio.build.encoder_provenance import collect_provenance
from uniaudio.build.encoder_sketch import sketch_encoder, sketch_model
from uniaudio.build.encoders import check_model, find_checkpoint, is_run, load_encoder
from uniaudio.commands.export_model import HF_LM, MODEL_TARGETS, export_model
from uniaudio.config.model_spec import ModelSpec, parse_model_spec
from uniaudio.config.nearest import suggest_name
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_stored_run
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import make_console, make_table
from uniaudio.errors import UserError
from uniaudio.export.hub_upload import check_login, push_folder
from uniaudio.extras import require_package
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.lora import merge_lora
from uniaudio.outputs import remove_on_failure, require_new_folder

MIB = 2**20
SUITE_CLASS = "UniaudioEncoder"
SUITE_FOLDER = "encoder"  # the folder that AutoModel loads, beside the file of a suite
HEAR = "hear"
# of every suite: the file of this package that is copied, and the command line that runs it
SUITES: Mapping[str, tuple[str, str]] = {
    "xares": ("xares_encoder.py", "python -m xares.run --max-jobs 0 {file} tasks/esc50_task.py"),
    "xares-llm": ("xares_llm_encoder.py", "python -m xares_llm.run {file} task1 task1"),
    "mteb": ("mteb_encoder.py", "python {file} ESC50 ESC50Clustering"),
    HEAR: ("hear_encoder.py", "hear-validator {module} -d cpu"),
}
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def export_checkpoint(
    spec: str,
    out: Path,
    to: str,
    push_to_hub: str | None = None,
    trust: Trust = NO_TRUST,
    decoder: str = "inside",
) -> None:
    """Write the encoder of a run, checkpoint or known model to a new folder, prove it, and print what was written.

    Args:
        to: ``hf``, ``onnx`` or one of ``SUITES``, or one of ``MODEL_TARGETS``, which take the whole model.
        push_to_hub: ``OWNER/NAME`` to upload an ``hf`` folder or a whole model to.
        decoder: of a whole model with ``hf-lm``: ``inside`` or ``reference``.

    Raises:
        UserError: before anything is loaded: an unknown target, a folder that is not empty, a missing package, no
            login; and when the encoder cannot be exported so.
    """
    model = parse_model_spec(spec)
    check_request(model.path, to, push_to_hub, decoder)
    check_model(spec, trust)
    require_new_folder(out, "DIR")
    if push_to_hub is not None:
        check_login(push_to_hub)
    place, whole = push_to_hub or str(out), to in MODEL_TARGETS
    with remove_on_failure(out):  # what could not be proved is not to be used
        line = (
            export_model(spec, out, to, place, trust, decoder)
            if whole
            else export_encoder(spec, out, to, place, trust)
        )
    console = make_console()
    console.print(files_table(out))
    if not whole:
        console.print("the exported model gives the same frames as the encoder; load it with:", style="dim")
    console.print(line, soft_wrap=True)
    if push_to_hub is not None:
        console.print(push_folder(out, push_to_hub), soft_wrap=True)


def export_encoder(spec: str, out: Path, to: str, place: str, trust: Trust) -> str:
    """Write the encoder of a MODEL, compare both, and return the lines that load it.

    Args:
        place: folder or Hub name in these lines.

    Raises:
        UserError: when the encoder cannot be exported so.
    """
    model, config = parse_model_spec(spec), None
    if (checkpoint := find_checkpoint(model.path)) is not None:
        config = load_stored_run(checkpoint / "config.yaml", checkpoint.parent.parent, trust)
        config.require_trust(decoder=False)  # before recipes are read
    if to == "onnx":
        check_onnx(model, config)
    facts = collect_provenance(spec)
    console = make_console()
    with console.status("loading the encoder"):
        encoder = load_encoder(spec, torch.device("cpu"), trust)
        merge_lora(encoder)
    if to == HEAR and not encoder.follows_time:
        raise UserError(
            f"--to {HEAR}: timestamp embeddings need frames in the order of time, which this encoder does not give "
            "(fusion.output: both)"
        )
    with console.status(f"writing {out}"):
        return WRITERS[to](encoder, out, facts, place)


def check_request(path: str, to: str, push_to_hub: str | None, decoder: str) -> None:
    """Refuse what cannot work.

    Raises:
        UserError: naming the option.
    """
    known = [*WRITERS, *MODEL_TARGETS]
    if to not in known:
        raise UserError(f"--to {to}: give one of {', '.join(known)}{suggest_name(to, known)}")
    if push_to_hub is not None and to not in ("hf", *MODEL_TARGETS):
        raise UserError(f"--push-to-hub works with --to hf and with whole models, not with --to {to}")
    if decoder != "inside" and to != HF_LM:
        has = "always contains its decoder" if to in MODEL_TARGETS else "contains only the encoder"
        raise UserError(f"--decoder {decoder} works only with --to {HF_LM}; {to} {has}")
    if is_run(path) and find_checkpoint(path) is None:
        raise UserError(f"{path} is a run folder without a complete checkpoint")
    if to == "onnx":
        for package in ONNX_PACKAGES:
            require_package(package, "--to onnx")


def check_onnx(model: ModelSpec, config: RunConfig | None) -> None:
    """Refuse an encoder that ONNX cannot hold, before its weights are read where it can be built without them.

    Args:
        config: of the run, None for a model.

    Raises:
        UserError: naming the encoder and why.
    """
    from uniaudio.export.onnx_file import FUSED, find_stock_module

    if config is not None and config.fusion is not None:
        raise UserError(FUSED)
    sketch = sketch_model(model) if config is None else sketch_encoder(config)
    if sketch is not None:
        find_stock_module(sketch)


def to_hf(encoder: AudioEncoder, out: Path, facts: Mapping[str, Any], place: str) -> str:
    """Write a folder for transformers with its card; return the line that loads it."""
    from uniaudio.export.hf import verify_hf, write_hf
    from uniaudio.export.model_card import write_card

    write_hf(encoder, out, facts)
    write_card(out, encoder, facts, place)
    verify_hf(encoder, out)
    return f'AutoModel.from_pretrained("{place}", trust_remote_code=True)'


def to_suite(suite: str, encoder: AudioEncoder, out: Path, facts: Mapping[str, Any], place: str) -> str:
    """Write the entry of a benchmark suite; return the command line that runs it."""
    to_hf(encoder, out / SUITE_FOLDER, facts, str(out / SUITE_FOLDER))
    return suite_command(suite, write_suite_file(out, suite))


def suite_command(suite: str, file: Path) -> str:
    """Return the command line that runs a suite on the file of an entry.

    X-ARES and XARES-LLM make the name of a module of the path, so it must be relative to the folder in which they run;
    HEAR imports the file as a module of the folder it lies in.
    """
    line = SUITES[suite][1]
    if suite == HEAR:
        return f"cd {shlex.quote(str(file.parent))} && PYTHONPATH=. {line.format(module=file.stem)}"
    if not file.is_absolute():
        return line.format(file=shlex.quote(str(file)))
    place = file.parent.parent
    return f"cd {shlex.quote(str(place))} && {line.format(file=shlex.quote(str(file.relative_to(place))))}"


def to_onnx(encoder: AudioEncoder, out: Path, facts: Mapping[str, Any], place: str) -> str:
    """Write an ONNX file and its feature extractor; return the lines that load both."""
    from uniaudio.export.onnx_file import FILE, write_onnx

    stock = write_onnx(encoder, out, facts)
    options = ", ".join(f"{name}={value!r}" for name, value in stock.options.items())
    return (
        ("# clips are padded to 30 s, as the stock module expects\n" if stock.whole else "")
        + f'session = onnxruntime.InferenceSession("{out / FILE}")\n'
        f'extractor = AutoFeatureExtractor.from_pretrained("{out}")\n'
        f'inputs = extractor(clips, {options}, return_tensors="np")\n'
        "frames = session.run(None, dict(inputs))[0]"
    )


WRITERS: Mapping[str, Callable[[AudioEncoder, Path, Mapping[str, Any], str], str]] = {
    "hf": to_hf,
    **{suite: partial(to_suite, suite) for suite in SUITES},
    "onnx": to_onnx,
}


def files_table(folder: Path) -> Table:
    """Lay out the files of a folder with their sizes, those of Python as one row."""
    table = make_table(str(folder), "file", "MiB", numbers=1)
    written = sorted(path for path in folder.rglob("*") if path.is_file())
    code = [path for path in written if path.suffix == ".py"]
    for path in written:
        if path not in code:
            table.add_row(str(path.relative_to(folder)), f"{path.stat().st_size / MIB:.2f}")
    if code:
        table.add_row(f"{len(code)} Python files", f"{sum(path.stat().st_size for path in code) / MIB:.2f}")
    return table


def write_suite_file(folder: Path, suite: str) -> Path:
    """Write the file of a suite into a folder whose ``encoder/`` holds an exported encoder.

    The class ends in ``Encoder``, as X-ARES and XARES-LLM want, and carries the first digits of the hash of the
    weights: X-ARES and mteb keep results under its name, HEAR under that of the file.
    """
    digest = hashlib.sha256((folder / SUITE_FOLDER / "model.safetensors").read_bytes()).hexdigest()[:8]
    source = files("uniaudio.export") / SUITES[suite][0]
    file = folder / (f"uniaudio_{digest}.py" if suite == HEAR else "uniaudio_encoder.py")
    text = source.read_text(encoding="utf-8").replace(SUITE_CLASS, f"Uniaudio{digest}Encoder")
    file.write_text(text, encoding="utf-8")
    return file
