"""What a causal language model of ``transformers`` cannot do, by its config and class alone or by its modules."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from uniaudio.errors import UserError, convert_to_user_error

MADE_WHOLE = (
    "mxfp4",
    "fp8",
)  # kinds of quantized weights that transformers turns back into plain ones by itself
MORE_ROWS = 8  # that a table of positions may have beyond them, as OPT's has two


def refuse_unusable_class(config: PretrainedConfig) -> None:
    """Refuse a decoder by its configuration, without its weights; classes of foreign code are not looked at.

    Raises:
        UserError: when it has an encoder of text, is no causal language model (BERT has a class for it, but sees what
            follows a token unless its config says ``is_decoder``), or needs ids beside embeddings.
    """
    if config.is_encoder_decoder:
        raise UserError(
            f"decoder.path: {config.model_type} is an encoder-decoder model, but the decoder must "
            "be a causal language model"
            + ("; set decoder.kind: whisper" if config.model_type == "whisper" else "")
        )
    refuse_quantized(config)
    if getattr(config, "auto_map", None):
        return
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and hasattr(config, "text_config"):
        raise UserError(
            f"decoder.path: {config.model_type} reads more than text; save its language model "
            "separately and name that folder"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"decoder.path: {config.model_type} is not a causal language model that transformers "
            "knows; use another one"
        )
    if type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False):
        raise UserError(
            f"decoder.path: {config.model_type} reads texts in both directions, so it is no causal language model; use "
            "another one"
        )
    if getattr(config.get_text_config(), "hidden_size_per_layer_input", None):
        raise UserError(
            f"decoder.path: {config.model_type} looks token ids up in every layer, which audio tokens do not have; "
            "use another decoder"
        )
    refuse_without_generation(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


def refuse_quantized(config: PretrainedConfig) -> None:
    """Refuse weights of few bits that only a package of their own can use; those that can be made whole are.

    Raises:
        UserError: naming the kind.
    """
    stated = getattr(config, "quantization_config", None)
    if stated is None:
        return
    kind = stated.get("quant_method") if isinstance(stated, dict) else None
    if isinstance(stated, dict) and kind in MADE_WHOLE:
        stated["dequantize"] = True  # no kernels for them are fetched either
        return
    raise UserError(
        "decoder.path: its weights are quantized "
        f"({kind or 'quantization_config in its config.json'}), which is not supported; name the "
        "original model (decoder.dtype: fp8 keeps it small)"
    )


def refuse_without_generation(kind: type[PreTrainedModel]) -> None:
    """Refuse a class whose ``generate`` takes no embeddings: audio tokens have no ids.

    Raises:
        UserError: naming the class.
    """
    prepare = getattr(kind, "prepare_inputs_for_generation", None)  # foreign code may have none
    if prepare is None or "inputs_embeds" not in inspect.signature(prepare).parameters:
        raise UserError(
            f"decoder.path: {kind.__name__} cannot generate from embeddings, so it could be trained "
            "but never answer; use another decoder"
        )


def find_position_limit(lm: PreTrainedModel) -> int | None:
    """Return the number of positions of a model that looks them up in a table; None where they are computed.

    The table may be trained (GPT-2, OPT) or made of sines (GPT-J); its rows may be some more than the positions.
    """
    config: Any = lm.config.get_text_config()
    if config.model_type == "mpt":  # a bias of so many places
        return int(config.max_seq_len)
    stated = getattr(config, "max_position_embeddings", None)
    if stated is None:
        return None
    tokens = lm.get_input_embeddings()
    tables = [part.weight for part in lm.modules() if isinstance(part, nn.Embedding) and part is not tokens]
    tables += [table for name, table in lm.named_buffers() if "pos" in name.rsplit(".", 1)[-1]]
    lengths = [len(table) for table in tables if table.dim() == 2]
    return int(stated) if any(0 <= length - stated <= MORE_ROWS for length in lengths) else None


def build_on_meta(architecture: PretrainedConfig) -> PreTrainedModel:
    """Build a causal language model without weights.

    Raises:
        UserError: when transformers cannot build it from its configuration.
    """
    with (
        convert_to_user_error("decoder.path: no model can be built from its config.json"),
        torch.device("meta"),
    ):
        return AutoModelForCausalLM.from_config(architecture, trust_remote_code=False)
