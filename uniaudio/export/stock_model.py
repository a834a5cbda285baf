"""A whole run in a published format: weights, configuration, processor, tokenizer and chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
    WhisperFeatureExtractor,
)

from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError
from uniaudio.export import hub_processor
from uniaudio.export.chat_template import prepare_tokenizer, write_prompt_files
from uniaudio.export.describe import add_older_names
from uniaudio.export.hf import HEADER, detach_tensor
from uniaudio.export.hub_processor import WindowsProcessor
from uniaudio.export.source_code import flatten_modules, flatten_name
from uniaudio.export.stock_formats import StockFormat
from uniaudio.model.adapters.stock_projectors import StockProjector
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.outputs import apply_umask, write_json

SHARD = "4GB"
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")  # of a decoder


def require_fitting_parts(
    model: AudioLM, target: StockFormat, name: str
) -> tuple[WhisperAudioEncoder, StockProjector]:
    """Return encoder and adapter of a model that fits a format.

    Raises:
        UserError: naming the part that does not.
    """
    encoder, adapter = model.encoder, model.adapter
    refuse_encoder(encoder, name, target)
    assert isinstance(encoder, WhisperAudioEncoder)
    if not isinstance(adapter, StockProjector) or adapter.kind != target.adapter:
        raise UserError(
            f"--to {name}: the format has the projector of adapter.kind {target.adapter}, but the "
            f"model has that of {adapter.inner.kind}; use --to hf-lm"
        )
    lm = model.decoder.lm
    head = lm.get_output_embeddings()
    text = lm.config
    if getattr(head, "bias", None) is not None or not model.decoder.plain_head:
        raise UserError(
            f"--to {name}: the logits of {type(lm).__name__} are more than a linear map of hidden "
            "states; use --to hf-lm"
        )
    if type(text) not in AutoModel._model_mapping or AutoModel._model_mapping[type(text)] is not type(
        lm.base_model
    ):
        raise UserError(f"--to {name}: {type(lm).__name__} cannot be part of this format; use --to hf-lm")
    config = target.make_config(encoder, adapter, make_text_config(text, model.decoder.vocabulary), 0)
    read: Any = None if target.model is None else type(config).from_dict(config.to_dict())
    if read and (
        changed := [size for size in SIZES if getattr(read.text_config, size) != getattr(text, size)]
    ):
        raise UserError(
            f"--to {name}: {type(read).__name__} of transformers reads a different {changed[0]} "
            f"from the configuration of a {type(lm).__name__}; use --to hf-lm"
        )
    return encoder, adapter


def refuse_encoder(encoder: Any, name: str, target: StockFormat) -> None:
    """Refuse an encoder that is no Whisper-shaped one, or that the format has no room for.

    Raises:
        UserError: naming its model type, or its width.
    """
    if type(encoder) is not WhisperAudioEncoder:
        raise UserError(
            f"--to {name}: the format has one Whisper-shaped encoder, but the model has "
            f"{encoder.model_type}; use --to hf-lm"
        )
    if misfit := target.explain_misfit(encoder):
        raise UserError(f"--to {name}: the encoder does not fit, {misfit}; use --to hf-lm")


def write_stock_model(
    model: AudioLM, format: ChatFormat, folder: Path, name: str, target: StockFormat
) -> None:
    """Write a model without low-rank updates so that the stock class loads it.

    Every tensor keeps its precision, but the decoder's are stored in bfloat16 or float16 where that rounds nothing.

    Raises:
        UserError: when a part of the model does not fit the format.
    """
    encoder, adapter = require_fitting_parts(model, target, name)
    folder.mkdir(parents=True, exist_ok=True)
    # the ids of audio, of beginning and end
    tokenizer, ids = prepare_tokenizer(
        format, target.placeholder, [text for text in (target.audio, target.begin, target.end) if text]
    )
    template = str(tokenizer.chat_template)
    lm = model.decoder.lm
    table, head = lm.get_input_embeddings().weight.detach(), lm.get_output_embeddings().weight.detach()
    rows = max(len(table), max(ids) + 1)
    is_tied = target.ties_head and has_tied_head(lm)
    marks = dict(zip(ids[1:], (m for m in (adapter.begin, adapter.end) if m is not None), strict=True))
    tensors = {
        f"language_model.model.{key}": value
        for key, value in lm.base_model.state_dict().items()
        if value.data_ptr() != table.data_ptr()
    }
    embeddings = f"language_model.model.{find_name(lm.base_model, lm.get_input_embeddings())}.weight"
    tensors[embeddings] = put_rows(enlarge_table(table, rows), marks)
    if not is_tied:
        tensors["language_model.lm_head.weight"] = enlarge_table(head, rows)
    tensors = {key: store_compactly(value) for key, value in tensors.items()}
    tensors |= {f"audio_tower.{key}": value for key, value in encoder.whisper.state_dict().items()}
    tensors |= {f"multi_modal_projector.{key}": v for key, v in adapter.projector.state_dict().items()}
    save_torch_state_dict(
        {key: detach_tensor(value) for key, value in tensors.items()}, folder, max_shard_size=SHARD
    )
    config = target.make_config(encoder, adapter, make_text_config(lm.config, rows, is_tied), ids[0])
    config.architectures = [target.architecture]
    config.dtype = "float32"
    config.tie_word_embeddings = (
        is_tied  # vLLM gives the language model the value of the whole, as transformers 5 does
    )
    config.to_json_file(folder / "config.json", use_diff=False)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    values["text_config"] = add_older_names(values["text_config"], type(lm.config))
    (folder / "config.json").write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    extractor = WhisperFeatureExtractor(feature_size=encoder.whisper.config.num_mel_bins)
    processor = target.make_processor(extractor, tokenizer, template, adapter)
    processor.save_pretrained(folder)
    if isinstance(processor, WindowsProcessor):
        write_processor_code(processor, folder)
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    write_prompt_files(format, tokenizer, folder)
    extractor.save_pretrained(folder)  # transformers 4 and engines look for it in a file of its own
    apply_umask(folder)


def write_processor_code(processor: WindowsProcessor, folder: Path) -> None:
    """Write the code of a processor that transformers does not have, and the file that names it."""
    name = type(processor).__name__
    for file, code in flatten_modules({hub_processor.__name__: {name}}, HEADER).items():
        (folder / file).write_text(code, encoding="utf-8")
    values = {
        "processor_class": name,
        "auto_map": {"AutoProcessor": f"{flatten_name(hub_processor.__name__)}.{name}"},
        "audio_token": processor.audio_token,
        "stack": processor.stack,
    }
    write_json(folder / "processor_config.json", values)


def find_name(module: torch.nn.Module, part: torch.nn.Module) -> str:
    """Return the name of a part in a module."""
    return next(name for name, one in module.named_modules() if one is part)


def restore_names(tensors: Mapping[str, Tensor], lm: PreTrainedModel) -> dict[str, Tensor]:
    """Return the tensors of a stock format's language model by the names that its own class has for them.

    Args:
        tensors: without ``language_model.``. lm: of that class, with or without weights.
    """
    head = find_name(lm, lm.get_output_embeddings())
    return {
        f"{head}.weight"
        if name == "lm_head.weight"
        else f"{lm.base_model_prefix}.{name.removeprefix('model.')}": tensor
        for name, tensor in tensors.items()
    }


def enlarge_table(table: Tensor, rows: int) -> Tensor:
    """Return a table of embeddings with so many rows; new ones are the mean of the old.

    As rows of the head they are never the likeliest token, for no mean is above all it was made of.
    """
    if rows == len(table):
        return table
    mean = table.float().mean(0, keepdim=True).to(table.dtype)
    return torch.cat([table, mean.expand(rows - len(table), -1)])


def put_rows(table: Tensor, marks: Mapping[int, Tensor]) -> Tensor:
    """Return a table with some rows replaced, in the wider precision of both."""
    for id, mark in marks.items():
        table = table.to(torch.promote_types(table.dtype, mark.dtype)).clone()
        table[id] = mark[0].detach().to(table)
    return table


def store_compactly(tensor: Tensor) -> Tensor:
    """Return a tensor in bfloat16 or float16 where that rounds no value."""
    for kind in (torch.bfloat16, torch.float16) if tensor.dtype == torch.float32 else ():
        if torch.equal((small := tensor.to(kind)).float(), tensor):
            return small
    return tensor


def has_tied_head(lm: PreTrainedModel) -> bool:
    """Return whether the head of a language model is its table of embeddings."""
    head, table = lm.get_output_embeddings(), lm.get_input_embeddings()
    return head is not None and head.weight.data_ptr() == table.weight.data_ptr()


def make_text_config(config: PretrainedConfig, vocabulary: int, is_tied: bool = False) -> PretrainedConfig:
    """Return the decoder's configuration for a table of so many rows, which is the head as well where that is tied."""
    values = {
        **config.to_dict(),
        "vocab_size": vocabulary,
        "tie_word_embeddings": is_tied,
        "dtype": "float32",
    }
    for name in ("_name_or_path", "transformers_version", "model_type"):
        values.pop(name, None)
    return AutoConfig.for_model(config.model_type, **values)
