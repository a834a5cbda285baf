"""From an adapter config to the adapter."""

from __future__ import annotations

from uniaudio.config.adapters import (
    AdapterConfig,
    ConvConfig,
    LinearConfig,
    PerceiverConfig,
    PoolConfig,
    QformerConfig,
    StackConfig,
    StockProjectorConfig,
    UltravoxConfig,
)
from uniaudio.model.adapters.base import Adapter
from uniaudio.model.adapters.conv import ConvAdapter
from uniaudio.model.adapters.fixed_tokens import TokensAdapter
from uniaudio.model.adapters.pool import PoolAdapter
from uniaudio.model.adapters.qformer import QueryAdapter
from uniaudio.model.adapters.stack import LinearAdapter, StackAdapter
from uniaudio.model.adapters.stock_projectors import make_stock_projector
from uniaudio.model.encoders.base import AudioEncoder


def make_adapter(config: AdapterConfig, encoder: AudioEncoder, decoder_dim: int) -> Adapter:
    """Build the adapter between an encoder and a decoder of width ``decoder_dim``.

    Raises:
        UserError: when the encoder's frame rate does not suit it.
    """
    ends = (encoder.dim, encoder.frame_rate, decoder_dim)
    if isinstance(config, StackConfig):
        return StackAdapter(*ends, config.rate, config.hidden)
    if isinstance(config, LinearConfig):
        return LinearAdapter(*ends, config.rate)
    if isinstance(config, PoolConfig):
        return PoolAdapter(*ends, config.rate, config.hidden)
    if isinstance(config, ConvConfig):
        return ConvAdapter(*ends, config.rate, config.hidden, config.kernel)
    if isinstance(config, QformerConfig | PerceiverConfig):
        window = config.window_seconds if isinstance(config, QformerConfig) else None
        return QueryAdapter(*ends, window, config.queries, config.layers, config.heads, config.hidden)
    if isinstance(config, StockProjectorConfig):
        return make_stock_projector(config.kind, *ends)
    if isinstance(config, UltravoxConfig):
        return make_stock_projector(config.kind, *ends, config.stack, config.hidden)
    return TokensAdapter(*ends, config.tokens, config.hidden, config.stack)
