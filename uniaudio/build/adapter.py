"""From an adapter config to the adapter."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedTokenizerBase

from uniaudio.config.adapters import AdapterConfig
from uniaudio.errors import UserError
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.adapters.conv import ConvAdapter
from uniaudio.model.adapters.depth import DepthAdapter
from uniaudio.model.adapters.fixed_tokens import TokensAdapter
from uniaudio.model.adapters.pool import PoolAdapter
from uniaudio.model.adapters.qformer_perceiver import QueryAdapter
from uniaudio.model.adapters.stack import LinearAdapter, StackAdapter
from uniaudio.model.adapters.stock_projectors import make_stock_projector
from uniaudio.model.adapters.time_markers import CHARACTERS, TimeMarkersAdapter
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.encoders.base import AudioEncoder

# all other settings are arguments of the adapter
SHARED = {"kind", "lr", "depth", "time_markers", "start", "start_examples"}
ADAPTERS: Mapping[str, type[Adapter]] = {
    "stack": StackAdapter,
    "linear": LinearAdapter,
    "pool": PoolAdapter,
    "conv": ConvAdapter,
    "qformer": QueryAdapter,
    "perceiver": QueryAdapter,
    "tokens": TokensAdapter,
}


def make_adapter(config: AdapterConfig, encoder: AudioEncoder, decoder_dim: int) -> Adapter:
    """Build the adapter between an encoder and a decoder of width ``decoder_dim``.

    Raises:
        UserError: when the encoder's frame rate does not suit it, it has no layer that ``depth`` names, or its frames
            are not in the order of time that markers need.
    """
    adapter = make_plain_adapter(config, encoder, decoder_dim)
    if (depth := config.depth) is not None:
        layers = (list(depth.encoder_layers), list(depth.decoder_layers))
        adapter = DepthAdapter(adapter, list(encoder.layer_dims), decoder_dim, *layers)
    if config.time_markers is not None:
        if not encoder.follows_time:
            raise UserError(
                "adapter.time_markers: the frames of this encoder are not in the order of time (fusion.output: both); "
                "leave it out, or use `output: sum`"
            )
        adapter = TimeMarkersAdapter(adapter, encoder.frame_rate, decoder_dim, config.time_markers)
    return adapter


def fill_time_markers(adapter: Adapter, decoder: TextDecoder, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give an adapter with time markers the decoder's embeddings of their characters.

    Raises:
        UserError: when one of them is no token.
    """
    if not isinstance(adapter, TimeMarkersAdapter):
        return
    ids = [tokenizer(character, add_special_tokens=False)["input_ids"][-1:] for character in CHARACTERS]
    for character, last in zip(CHARACTERS, ids, strict=True):
        if not last or tokenizer.decode(last).strip() != character:
            raise UserError(
                f"adapter.time_markers: the decoder's tokenizer has no token for '{character}'; leave it out"
            )
    rows = torch.tensor([one for last in ids for one in last], device=adapter.table.device)
    with torch.no_grad():
        adapter.fill_table(decoder.embed(rows.to(decoder.lm.device)).to(adapter.table))


def make_plain_adapter(config: AdapterConfig, encoder: AudioEncoder, decoder_dim: int) -> Adapter:
    """Build the adapter that makes audio tokens of frames."""
    ends = (encoder.dim, encoder.frame_rate, decoder_dim)
    settings = config.model_dump(exclude=SHARED, exclude_none=True)
    if config.kind in ADAPTERS:
        return ADAPTERS[config.kind](*ends, **settings)
    return make_stock_projector(config.kind, *ends, **settings)
