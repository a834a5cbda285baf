"""``uniaudio export`` of a whole model: encoder, adapter and language model in a format that others serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from uniaudio.build.encoder_provenance import collect_provenance
from uniaudio.build.encoder_sketch import sketch_encoder
from uniaudio.build.encoders import find_checkpoint
from uniaudio.build.exported_model import find_format
from uniaudio.build.model import load_model
from uniaudio.config.decoder import DecoderConfig
from uniaudio.config.model_spec import parse_model_spec
from uniaudio.config.run import RunConfig
from uniaudio.config.run_files import load_stored_run
from uniaudio.config.trust import Trust
from uniaudio.console import make_console
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.lora import merge_lora
from uniaudio.model.model_files import (
    RANDOM,
    fetch_model_config,
    read_model_config,
    refuse_unusable_files,
)

if TYPE_CHECKING:  # it imports the classes of transformers
    from uniaudio.export.stock_formats import StockFormat

HF_LM = "hf-lm"
MODEL_TARGETS = ("qwen2-audio", "audio-flamingo3", "voxtral", "ultravox", HF_LM)


def export_model(spec: str, out: Path, to: str, place: str, trust: Trust, decoder: str) -> str:
    """Write the whole model of a run, compare it with the run, and return the lines that load it.

    Args:
        place: folder or Hub name in the lines that load it.
        decoder: for ``hf-lm``, ``inside`` writes its weights, ``reference`` names where they are.

    Raises:
        UserError: before any weights are read where a config tells that the run does not fit the format.
    """
    if to == HF_LM:
        return export_hf_lm(spec, out, place, trust, decoder)
    from uniaudio.export.logit_comparison import compare_stock_model, compute_prompt_logits, make_trial_clips
    from uniaudio.export.model_card import write_lm_card
    from uniaudio.export.stock_formats import STOCK_FORMATS
    from uniaudio.export.stock_model import write_stock_model

    target = STOCK_FORMATS[to]
    if (config := read_run_config(spec, to, trust)) is not None:
        require_fitting_run(config, to, target)
    facts = collect_provenance(spec, whole=True)
    console = make_console()
    with console.status("loading the model"):
        model, format = load_merged_model(spec, trust)
    with console.status(f"writing {out}"):
        write_stock_model(model, format, out, to, target)
    is_exact = target.is_exact(model.encoder)
    kind = model.decoder.lm.config.model_type
    notes = [*target.notes]
    if target.model is not None:
        with console.status("comparing both models"):
            clips = make_trial_clips()
            wanted = compute_prompt_logits(model, format, clips)
            del model  # the stock class needs as much memory again
            notes.append(compare_stock_model(wanted, clips, out, target, is_exact).describe())
    if not is_exact:
        notes.append(
            "The encoder was trained without the padding of this format; train with "
            f"{target.describe_encoder_settings()} for equal results."
        )
    if target.decoders and kind not in target.decoders:
        notes.append(
            f"transformers loads it; inference engines that expect a {' or '.join(target.decoders)} "
            f"decoder in this format cannot serve it with a {kind} decoder."
        )
    code = write_stock_loading_code(place, target)
    write_lm_card(out, facts, to, code, notes)
    for note in notes:
        console.print(note, style="dim")
    return code


def load_merged_model(spec: str, trust: Trust) -> tuple[AudioLM, ChatFormat]:
    """Load a run in float32 with its low-rank updates merged, and the format of its prompts."""

    loaded = load_model(spec, torch.device("cpu"), trust)
    merge_lora(loaded.model)
    return loaded.model.float().eval(), loaded.format


def export_hf_lm(spec: str, out: Path, place: str, trust: Trust, decoder: str) -> str:
    """Write the whole model of a run with its code, see ``export_model``."""
    from uniaudio.export.hf_lm import write_hf_lm
    from uniaudio.export.logit_comparison import compute_prompt_logits, make_trial_clips, verify_hf_lm
    from uniaudio.export.model_card import list_packages, write_lm_card

    config = read_run_config(spec, HF_LM, trust)
    if config is None:
        reference = find_exported_reference(spec, decoder)
    else:
        reference = find_decoder_reference(config.decoder, decoder)
        refuse_decoder(config)
    facts = collect_provenance(spec, whole=True)
    console = make_console()
    with console.status("loading the model"):
        model, format = load_merged_model(spec, trust)
    with console.status(f"writing {out}"):
        write_hf_lm(model, format, out, facts, reference)
    with console.status("comparing both models"):
        clips = make_trial_clips()
        wanted = compute_prompt_logits(model, format, clips)
        del model  # the written model needs as much memory again
        difference = verify_hf_lm(wanted, clips, out)
    notes = [
        f"The Python files in the folder are the model's code; they need only {list_packages(out)}.",
        f"Compared with the run on clips of noise: logits differ by at most {difference:.1g} of the largest.",
    ]
    if reference is not None:
        notes.append(f"The decoder's weights are not in the folder; they are read from {reference[0]}.")
    code = write_loading_code(place, "AutoModelForCausalLM", ", trust_remote_code=True")
    write_lm_card(out, facts, HF_LM, code, notes)
    return code


def refuse_decoder(config: RunConfig) -> None:
    """Refuse a decoder that a folder with code of this package cannot hold.

    Raises:
        UserError: for Whisper's own, one in fp8, and one with code of its own.
    """
    if config.decoder.kind == "whisper":
        raise UserError(
            f"--to {HF_LM}: Whisper's own decoder reads frames, not tokens; use --to hf for the encoder"
        )
    if config.decoder.dtype == "fp8" or config.decoder.trust_remote_code:
        raise UserError(
            f"--to {HF_LM}: the decoder is in fp8 or needs its own code; use --to hf for the encoder"
        )


def find_exported_reference(spec: str, decoder: str) -> tuple[str, str | None] | None:
    """Return where the decoder of an exported model is, as that states it; None where it is to be written.

    Raises:
        UserError: when it is inside of that model.
    """
    path = parse_model_spec(spec).path
    values = read_model_config(fetch_model_config(path, None))
    settings = DecoderConfig(
        path=values.get("decoder_path") or RANDOM, revision=values.get("decoder_revision")
    )
    return find_decoder_reference(settings, decoder)


def find_decoder_reference(settings: DecoderConfig, decoder: str) -> tuple[str, str | None] | None:
    """Return where a decoder's weights are, with the revision; None where they are to be written.

    Raises:
        UserError: when the run has changed them, so that they are nowhere else.
    """
    if decoder == "inside":
        return None
    if decoder != "reference":
        raise UserError(f"--decoder {decoder}: give inside or reference")
    if settings.train != "frozen" or settings.miniature is not None or settings.path.startswith("random:"):
        raise UserError("--decoder reference: the run's decoder exists nowhere else; use --decoder inside")
    return settings.path, settings.revision


def read_run_config(spec: str, to: str, trust: Trust) -> RunConfig | None:
    """Return the config of the run whose model is to be exported; None for an exported model.

    Raises:
        UserError: when it is neither, for other models have neither adapter nor decoder.
    """
    path = parse_model_spec(spec).path
    checkpoint = find_checkpoint(path)
    if checkpoint is None and find_format(path) is not None:
        return None
    if checkpoint is None:
        if Path(path).is_dir():
            refuse_unusable_files(path, "model")
        raise UserError(
            f"--to {to} exports the whole model of a run, and {spec} is not one; use --to hf for an encoder"
        )
    config = load_stored_run(checkpoint / "config.yaml", checkpoint.parent.parent, trust)
    config.require_trust()
    return config


def require_fitting_run(config: RunConfig, to: str, target: StockFormat) -> None:
    """Refuse a run that a stock format cannot hold, before its weights are read.

    Raises:
        UserError: naming fusion, adapter, decoder or encoder.
    """
    from uniaudio.export.stock_model import refuse_encoder

    adapter, elsewhere = target.adapter, "use --to hf-lm"
    if config.fusion is not None:
        raise UserError(
            f"--to {to}: the format has one encoder, but fusion.kind is {config.fusion.kind}; {elsewhere}"
        )
    if config.decoder.kind == "whisper":
        raise UserError(
            f"--to {to}: the format has no place for Whisper's own decoder; use --to hf for the encoder"
        )
    if config.adapter.kind != adapter:
        raise UserError(
            f"--to {to}: the format has the projector of adapter.kind {adapter}, but the run has "
            f"{config.adapter.kind}; train with adapter.kind: {adapter}, or {elsewhere}"
        )
    if config.decoder.dtype == "fp8":
        raise UserError(
            f"--to {to}: decoder.dtype is fp8, which rounds the weights; use a run in bfloat16 or float32"
        )
    sketch = sketch_encoder(config)
    if sketch is not None:
        refuse_encoder(sketch, to, target)


def write_stock_loading_code(place: str, target: StockFormat) -> str:
    """Return the lines of Python that answer a question with a model in a stock format."""
    if target.loading:
        return target.loading.replace("PLACE", place)
    code = write_loading_code(place, target.architecture, arguments=target.arguments)
    if not target.has_code:
        return code
    return code.replace(
        f'AutoProcessor.from_pretrained("{place}"',
        f'AutoProcessor.from_pretrained("{place}", trust_remote_code=True',
    )


def write_loading_code(place: str, name: str, option: str = "", arguments: str = "") -> str:
    """Return the lines of Python that answer a question with an exported model.

    Args:
        option: of loading. arguments: of the processor.
    """
    return (
        f"from transformers import AutoProcessor, {name}\n\n"
        f'processor = AutoProcessor.from_pretrained("{place}"{option})\n'
        f'model = {name}.from_pretrained("{place}"{option})\n'
        'turns = [{"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "What is this?"}]}]\n'
        "text = processor.apply_chat_template(turns, add_generation_prompt=True)\n"
        "inputs = processor(\n"
        f'    text=[text], audio=[waveform], sampling_rate=16000, return_tensors="pt"{arguments}\n'
        ")  # several texts and clips make a batch\n"
        "ids = model.generate(**inputs, max_new_tokens=64)[:, inputs.input_ids.shape[1]:]\n"
        "print(processor.batch_decode(ids, skip_special_tokens=True)[0])"
    )
