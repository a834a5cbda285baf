"""Whole models that are no run: exported ones, and published ones in the formats that are exported to.

They are opened as encoder, adapter and decoder, so they answer, are evaluated and are exported again as a run's model.
No code in their folder is read or run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from uniaudio.build.model import LoadedModel, load_tokenizer
from uniaudio.config.decoder import DecoderConfig
from uniaudio.config.model_spec import ModelSpec
from uniaudio.config.run import RunConfig
from uniaudio.console import announce
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.errors import UserError, convert_to_user_error
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.adapters.stock_projectors import StockProjector, make_stock_projector
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.base_identity import identify_base
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoder_limits import refuse_unusable_class
from uniaudio.model.decoder_loading import load_decoder
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.exported import rebuild_part
from uniaudio.model.encoders.registry import load_audio_encoder
from uniaudio.model.encoders.weights import fill, read_tensors
from uniaudio.model.model_files import (
    fetch_model_config,
    find_model_folder,
    read_model_config,
    use_stock_attention,
)

if TYPE_CHECKING:  # it imports the classes of transformers
    from uniaudio.export.stock_formats import StockFormat

HF_LM = "uniaudio_lm"
# the formats of whole models by their model type
FORMATS = {
    HF_LM: "hf-lm",
    "qwen2_audio": "qwen2-audio",
    "audioflamingo3": "audio-flamingo3",
    "voxtral": "voxtral",
    "ultravox": "ultravox",
}
ENCODER = "encoder"  # the name that it has in the config, as in a run


def find_format(path: str) -> str | None:
    """Return the format of a whole model by its folder or Hub name, None for what is none.

    The Hub is asked only for a name whose owner is no folder here: ``runs/bird`` is a run that is missing.

    Raises:
        UserError: when the Hub has no such model, or its config.json cannot be read.
    """
    owner, _, name = path.partition("/")
    is_name = (
        bool(name) and "/" not in name and not path.startswith((".", "~", "random:")) and ":" not in path
    )
    if not (Path(path) / "config.json").is_file() and (not is_name or Path(owner).exists()):
        return None
    return FORMATS.get(read_model_config(fetch_model_config(path, None))["model_type"])


def load_exported_model(chosen: ModelSpec, device: torch.device) -> LoadedModel:
    """Load a whole model; its config has neither stages nor data.

    Args:
        chosen: of a model that ``find_format`` knows, with options for the encoder.

    Raises:
        UserError: when a tensor is missing or unknown, or the config is of a kind that is not read.
    """
    announce(f"loading the model {chosen.path} ...")
    folder = find_model_folder(chosen.path, None)
    values = read_model_config(folder)
    target = find_target(values)
    settings = chosen.configure_model()
    if target is not None:
        settings = settings.model_copy(update={**target.encoder, **dict(chosen.options)})
    config = RunConfig.model_construct(
        output_dir="",
        encoders={ENCODER: settings},
        decoder=DecoderConfig(path=chosen.path),
        stages=(),
    )
    tokenizer = load_tokenizer(config.decoder, chosen.path)
    encoder = load_audio_encoder(settings, chosen.path)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    with convert_to_user_error(f"{folder}: its language model cannot be loaded"):
        if (place := values.get("decoder_path")) is not None:
            kind = "bfloat16" if dtype == torch.bfloat16 else "float32"
            decoder = load_decoder(place, values.get("decoder_revision"), kind, device=device)
        else:
            decoder = TextDecoder(load_language_model(values, folder, target, dtype).to(device))
    if target is None:
        adapter = rebuild_part(values.get("adapter"), Adapter, folder)
        fill(adapter, read_tensors(folder, ("adapter.",)), folder)
    else:
        adapter = load_stock_projector(values, folder, target, encoder, decoder, tokenizer)
    format = ChatFormat(
        tokenizer,
        max_text_tokens=config.data.max_text_tokens,
        max_positions=decoder.positions,
        vocabulary=decoder.vocabulary,
    )
    model = AudioLM(encoder, adapter.float(), decoder, config.train.label_chunk).to(device).eval()
    return LoadedModel(model, format, config, {"model": identify_base(chosen.path, None)})


def find_target(values: Mapping[str, Any]) -> StockFormat | None:
    """Return the stock format of a config.json, None for a model with code of this package."""
    from uniaudio.export.stock_formats import STOCK_FORMATS

    return next((one for one in STOCK_FORMATS.values() if one.model_type == values["model_type"]), None)


def load_language_model(
    values: Mapping[str, Any], folder: Path, target: StockFormat | None, dtype: torch.dtype
) -> Any:
    """Load the decoder that is inside of a whole model.

    Raises:
        UserError: when its weights are not in the folder, or a tensor is missing or unknown.
    """
    config = read_text_config(values, target)
    refuse_unusable_class(config)
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    tensors = read_tensors(folder, ("language_model.",), required=True)
    if target is not None:
        from uniaudio.export.stock_model import restore_names

        with torch.device("meta"):
            tensors = restore_names(tensors, kind(config))
    lm, loading = kind.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )
    if wrong := sorted({*loading["missing_keys"], *loading["unexpected_keys"]}):
        raise UserError(
            f"{folder}: {len(wrong)} tensors of {kind.__name__} are missing or unknown, such as {wrong[0]}"
        )
    return lm


def read_text_config(values: Mapping[str, Any], target: StockFormat | None) -> PretrainedConfig:
    """Return the decoder's configuration out of that of a whole model."""
    if target is not None and target.model is not None:  # published files leave out what its class fills in
        config: PretrainedConfig = target.model.config_class.from_dict(dict(values)).text_config
    else:
        config = AutoConfig.for_model(**values["text" if target is None else "text_config"])
    return use_stock_attention(config)


def load_stock_projector(
    values: Mapping[str, Any],
    folder: Path,
    target: StockFormat,
    encoder: AudioEncoder,
    decoder: TextDecoder,
    tokenizer: PreTrainedTokenizerBase,
) -> StockProjector:
    """Load the projector of a model in a stock format; its marks are rows of the table of embeddings.

    Raises:
        UserError: when a tensor is missing or unknown, or the tokenizer has no token for a mark.
    """
    ends = (encoder.dim, encoder.frame_rate, decoder.dim)
    adapter = make_stock_projector(
        target.adapter, *ends, values.get("stack_factor") or 1, values.get("hidden_size")
    )
    fill(adapter.projector, read_tensors(folder, ("multi_modal_projector.",), required=True), folder)
    known = tokenizer.get_vocab()
    for mark, text in ((adapter.begin, target.begin), (adapter.end, target.end)):
        if mark is None:
            continue
        if text not in known:
            raise UserError(
                f"{folder}: its tokenizer has no token {text}; add its tokenizer files to the folder"
            )
        with torch.no_grad():
            mark.copy_(decoder.lm.get_input_embeddings().weight[known[text]])
    return adapter
