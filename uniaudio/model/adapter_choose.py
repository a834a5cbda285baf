"""From an adapter config to the adapter."""

from __future__ import annotations

from typing import Any

from uniaudio.model.adapter import StackAdapter


def make_adapter(config: Any, encoder: Any, decoder_dim: int) -> Any:
    return StackAdapter(encoder.dim, encoder.frame_rate, decoder_dim, config.rate, config.hidden)
