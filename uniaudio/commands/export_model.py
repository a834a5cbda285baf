"""``uniaudio export`` of a whole model: encoder, adapter and language model in a format that others serve."""

from __future__ import annotations

from pathlib import Path

import torch

from uniaudio.build.encoder_provenance import collect_provenance
from uniaudio.build.encoders import find_checkpoint, sketch_encoder
from uniaudio.build.model import load_model
from uniaudio.config.run import RunConfig, load_stored_run
from uniaudio.config.trust import NO_TRUST, Trust
from uniaudio.console import make_console
from uniaudio.errors import UserError
from uniaudio.model.lora import merge_lora

MODEL_TARGETS = ("qwen2-audio", "audio-flamingo3")


def export_model(spec: str, out: Path, to: str, trust: Trust = NO_TRUST) -> str:
    """Write the whole model of a run, compare it with the run, and return the lines that load it.

    Raises:
        UserError: before any weights are read where a config tells that the run does not fit the format.
    """
    from uniaudio.export.model_card import write_lm_card
    from uniaudio.export.stock_formats import STOCK_FORMATS
    from uniaudio.export.stock_model import (
        compare_stock_model,
        compute_prompt_logits,
        make_trial_clips,
        write_stock_model,
    )

    target = STOCK_FORMATS[to]
    require_fitting_run(read_run_config(spec, to, trust), to, target.adapter)
    facts = collect_provenance(spec, whole=True)
    console = make_console()
    with console.status("loading the model"):
        loaded = load_model(spec, torch.device("cpu"), trust)
        merge_lora(loaded.model)
        model = loaded.model.float().eval()
    with console.status(f"writing {out}"):
        write_stock_model(model, loaded.format, out, to, target)
    with console.status("comparing both models"):
        clips = make_trial_clips()
        wanted = compute_prompt_logits(model, loaded.format, clips)
        is_exact = target.is_exact(model.encoder)
        decoder = model.decoder.lm.config.model_type
        del model, loaded  # the stock class needs as much memory again
        compared = compare_stock_model(wanted, clips, out, target, is_exact)
    notes = [*target.notes, compared.describe()]
    if not is_exact:
        notes.append(
            f"The encoder was trained without the padding of this format; train with {target.exact_setting} for equal "
            "results."
        )
    if target.decoders and decoder not in target.decoders:
        notes.append(
            f"transformers loads it; engines that put a {' or '.join(target.decoders)} decoder into this format do not "
            f"serve one with a {decoder} decoder."
        )
    code = write_loading_code(out, target.model.__name__)
    write_lm_card(out, facts, to, code, notes)
    for note in notes:
        console.print(note, style="dim", highlight=False, markup=False)
    return code


def read_run_config(spec: str, to: str, trust: Trust) -> RunConfig:
    """Return the config of the run whose model is to be exported.

    Raises:
        UserError: when it is no run, for other models have neither adapter nor decoder.
    """
    checkpoint = find_checkpoint(spec.partition("?")[0])
    if checkpoint is None:
        raise UserError(
            f"--to {to} writes the whole model of a run, and {spec} is none; use --to hf for an encoder"
        )
    config = load_stored_run(checkpoint / "config.yaml", checkpoint.parent.parent, trust)
    config.require_trust()
    return config


def require_fitting_run(config: RunConfig, to: str, adapter: str) -> None:
    """Refuse a run that a stock format cannot hold, before its weights are read.

    Raises:
        UserError: naming fusion, adapter, decoder or encoder.
    """
    from uniaudio.export.stock_model import refuse_encoder

    elsewhere = "use --to hf-lm"
    if config.fusion is not None:
        raise UserError(
            f"--to {to}: the format holds one encoder, and fusion.kind is {config.fusion.kind}; {elsewhere}"
        )
    if config.decoder.kind == "whisper":
        raise UserError(
            f"--to {to}: the format has no place for Whisper's own decoder; use --to hf for the encoder"
        )
    if config.adapter.kind != adapter:
        raise UserError(
            f"--to {to}: the format has the projector of adapter.kind {adapter}, and the run has "
            f"{config.adapter.kind}; train with adapter.kind: {adapter}, or {elsewhere}"
        )
    if config.decoder.dtype == "fp8":
        raise UserError(
            f"--to {to}: decoder.dtype is fp8, which rounds the weights; use a run in bfloat16 or float32"
        )
    sketch = sketch_encoder(config)
    if sketch is not None:
        refuse_encoder(sketch, to)


def write_loading_code(out: Path, name: str) -> str:
    """Return the lines of Python that answer a question with an exported model."""
    return (
        f"from transformers import AutoProcessor, {name}\n\n"
        f'processor = AutoProcessor.from_pretrained("{out}")\n'
        f'model = {name}.from_pretrained("{out}")\n'
        'turns = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What is this?"}]}]\n'
        "text = processor.apply_chat_template(turns, add_generation_prompt=True)\n"
        'inputs = processor(text=[text], audio=[waveform], sampling_rate=16000, return_tensors="pt")\n'
        "ids = model.generate(**inputs, max_new_tokens=64)[:, inputs.input_ids.shape[1]:]\n"
        "print(processor.batch_decode(ids, skip_special_tokens=True)[0])"
    )
