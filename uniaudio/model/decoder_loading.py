"""Loading of a language model by folder or Hub name, and what of it is trained."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM
from transformers.utils import logging

from uniaudio.errors import UserError, convert_to_user_error, prefix_user_errors
from uniaudio.hub_client import convert_hub_errors
from uniaudio.model.base_identity import TOKENIZER_FILES, identify_base
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoder_limits import refuse_unusable_class
from uniaudio.model.encoders.weights import build_with_random_weights
from uniaudio.model.fp8 import FP8, convert_to_float8, refuse_without_units
from uniaudio.model.lora import add_lora
from uniaudio.model.model_files import RANDOM, pin_revision, read_stock_config, refuse_unusable_files
from uniaudio.model.weight_headers import read_tensor_headers

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def load_decoder(
    path: str,
    revision: str | None = None,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    attention: str = "auto",
    device: torch.device | str = "cpu",
    train: str = "frozen",
    lora: Any = None,
    seed: int = 0,
) -> TextDecoder:
    """Load any causal LM by folder or Hub name, in bf16 on machines with CUDA and fp32 elsewhere (``dtype: auto``).

    Args:
        path: ``random:`` before it draws the weights from ``seed``.
        train: ``frozen``, ``lora`` or ``full``; in full it is kept in fp32, whatever ``dtype`` says.

    Raises:
        UserError: when it cannot be found, is no causal language model, is an adapter, lacks weights, holds pickles
            alone, or cannot generate from embeddings.
    """
    name = path.removeprefix(RANDOM)
    with prefix_user_errors("decoder.path"):
        commit = pin_revision(name, revision)
    if not path.startswith(RANDOM):
        refuse_unusable_files(name, "decoder.path", commit)
    device = torch.device(device)
    if dtype == FP8:
        refuse_without_units()
    kind = choose_dtype(dtype, train)
    lm = load_causal_lm(
        name, revision, commit, kind, trust_remote_code, seed if path.startswith(RANDOM) else None
    )
    decoder = TextDecoder(lm.to(device), attention, identify_base(path, revision, TOKENIZER_FILES))
    if dtype == FP8:  # after the trials above, which compare to rounding in the dtype of the weights
        convert_to_float8(lm.base_model)
    make_trainable(decoder, lm.base_model, train, lora, seed)
    return decoder


def choose_dtype(stated: str, train: str) -> torch.dtype:
    """Return the dtype that a decoder's weights are loaded in: float32 where they are all trained.

    Args:
        stated: ``decoder.dtype``. train: ``decoder.train``.
    """
    if train == "full":  # small steps are lost in bfloat16
        return torch.float32
    # a model that engines will spread is put together on the CPU of a machine with GPUs
    return DTYPES.get(stated) or (torch.bfloat16 if torch.cuda.is_available() else torch.float32)


def load_causal_lm(
    path: str,
    revision: str | None,
    commit: str | None,
    dtype: torch.dtype,
    trust_remote_code: bool,
    seed: int | None,
) -> Any:
    """Load a causal LM of transformers with all of its weights.

    Args:
        path: folder or Hub name. revision: as the user gave it. commit: the one that it stands for.
        seed: draws the weights; None loads them.

    Raises:
        UserError: when it cannot be loaded as a causal language model, or lacks weights.
    """
    what = f"decoder.path: {path} cannot be loaded as a causal language model"
    with convert_to_user_error(what), convert_hub_errors(what, path, revision, refusals_only=True):
        # its file may name a kernel on the Hub for attention
        config = read_stock_config(path, commit, trust_remote_code)
        refuse_unusable_class(config)
        settings: dict[str, Any] = {"dtype": dtype, "trust_remote_code": trust_remote_code}
        if seed is not None:
            return build_with_random_weights(
                lambda: AutoModelForCausalLM.from_config(config, **settings), seed
            )
        lm, loading = AutoModelForCausalLM.from_pretrained(
            path, config=config, revision=commit, use_safetensors=True, output_loading_info=True, **settings
        )
    refuse_missing_tensors(path, lm, loading["missing_keys"])
    return lm


def refuse_missing_tensors(path: str, lm: nn.Module, names: Collection[str]) -> None:
    """Refuse a decoder whose files lack some of its tensors.

    Raises:
        UserError: naming the first of them.
    """
    if missing := sorted(names):
        raise UserError(
            f"decoder.path: {path} holds no weights for {len(missing)} tensors of "
            f"{type(lm).__name__} ({missing[0]}); it belongs to another kind of model, or was saved "
            "without its head"
        )


def refuse_incomplete_causal_lm(folder: str) -> None:
    """Refuse a folder that ``load_causal_lm`` would not load, by the headers of its files alone.

    transformers goes through the tensors as in loading, with those renamed and joined that it stores otherwise, on the
    device ``meta``. Quantized weights are not looked at: they are unpacked from other tensors.

    Raises:
        UserError: as ``load_causal_lm``.
    """
    tensors = read_tensor_headers(Path(folder), "decoder.path")
    verbosity = logging.get_verbosity()
    with convert_to_user_error(f"decoder.path: {folder} cannot be loaded as a causal language model"):
        config = read_stock_config(folder)
        refuse_unusable_class(config)
        if getattr(config, "quantization_config", None) is not None:
            return
        logging.set_verbosity_error()  # its table of what is missing says what the sentence says
        try:
            lm, loading = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
                None, config=config, state_dict=tensors, device_map={"": "meta"}, output_loading_info=True
            )
        finally:
            logging.set_verbosity(verbosity)
    refuse_missing_tensors(folder, lm, loading["missing_keys"])


def make_trainable(decoder: nn.Module, body: nn.Module, how: str, lora: Any, seed: int) -> None:
    """Freeze a decoder, train it in full, or put low-rank updates beside the linear maps of its ``body`` (not the
    head).

    Low-rank updates are kept in float32 beside weights of any dtype.

    Args:
        lora: a ``LoraConfig``; None for its defaults.

    Raises:
        UserError: when a target of the updates matches nothing.
    """
    decoder.requires_grad_(how == "full")
    if how != "lora":
        return
    if lora is None:
        from uniaudio.config.encoders import LoraConfig  # nothing else here needs pydantic

        lora = LoraConfig()
    try:
        add_lora(body, lora.rank, lora.alpha, lora.dropout, lora.targets, seed)
    except UserError as problem:
        raise UserError(f"decoder.{problem}") from problem
    for parameter in body.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
