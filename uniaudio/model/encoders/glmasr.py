"""The audio tower of GLM-ASR: Whisper's convolutions, layers with rotary positions, packed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from uniaudio.model.activation_checkpointing import run_layer
from uniaudio.model.attention import Segments, packed_attention, project_heads
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.towers import fill_tower
from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.ragged import Ragged

STOCK = "glmasr:GlmAsrEncoder"
PREFIXES = ("model.audio_tower.", "audio_tower.")


class GlmAsrAudioEncoder(WhisperAudioEncoder):
    """GLM-ASR's tower (Z.ai, 2025), 50 frames per second, without the 30 s padding, as ``WhisperAudioEncoder``.

    Queries and keys are turned by their positions within the clip, in the first half of their channels.

    Args:
        tower: the stock module; its parameters are trained in place.
        pad_to, tail_frames, keep_tail: as in ``WhisperAudioEncoder``.
    """

    def __init__(
        self, tower: Any, pad_to: float | None = None, tail_frames: int = 0, keep_tail: bool = False
    ) -> None:
        super().__init__(tower, pad_to, tail_frames, keep_tail=keep_tail)
        self.layer = apply_glm_layer

    forward_padded = AudioEncoder.forward_padded  # the padded one of Whisper knows no rotary positions

    def add_positions(self, stem: Ragged) -> Ragged:
        return stem

    def encode(self, mel: Ragged, layers: bool, attending: Tensor | None = None) -> list[Ragged]:
        stem = self.convolve(mel)
        segments = Segments.of(stem.lengths, stem.device)
        positions = Ragged.count_within_rows(stem.lengths).to(stem.device, non_blocking=True)
        cosine, sine = (angle[0] for angle in self.whisper.rotary_emb(stem.values, positions[None]))
        hidden, states = stem.values, []
        for layer in self.whisper.layers:
            if layers:
                states.append(stem.with_values(hidden))
            hidden = run_layer(self.recomputes, self.layer, layer, hidden, segments, cosine, sine)
        return [*states, stem.with_values(self.whisper.norm(hidden))]


def apply_glm_layer(
    layer: Any,
    hidden: Float[Tensor, "A E"],
    segments: Segments,
    cosine: Float[Tensor, "A r"],
    sine: Float[Tensor, "A r"],
) -> Float[Tensor, "A E"]:
    """Apply one stock pre-norm layer to packed frames."""
    attention, normed = layer.self_attn, layer.input_layernorm(hidden)
    query, key, value = project_heads(attention, normed)
    turn = partial(turn_channels, cosine=cosine[:, None], sine=sine[:, None])
    dropout = attention.attention_dropout if attention.training else 0.0
    mixed = packed_attention(
        turn(query), turn(key), value, segments, causal=False, scale=attention.scaling, dropout=dropout
    )
    hidden = hidden + attention.o_proj(mixed.reshape(len(hidden), -1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def turn_channels(
    heads: Float[Tensor, "A H d"], cosine: Float[Tensor, "A 1 r"], sine: Float[Tensor, "A 1 r"]
) -> Float[Tensor, "A H d"]:
    """Turn the first ``r`` channels of every head, channel ``i`` with channel ``i + r / 2`` (Su et al. 2021)."""
    width = cosine.shape[-1]
    turned, kept = heads[..., :width], heads[..., width:]
    first, second = turned.chunk(2, -1)
    return torch.cat([turned * cosine + torch.cat([-second, first], -1) * sine, kept], -1)


def load_glmasr(path: str, revision: str | None = None, seed: int = 0, **settings: Any) -> GlmAsrAudioEncoder:
    """Load the audio tower, as ``load_whisper_tower`` does.

    GLM-ASR hears 30 s with silence behind the clip and no mask, which is ``pad_to=30``.
    """
    tower, _ = fill_tower(STOCK, path, revision, seed, PREFIXES, ("audio_config",))
    return GlmAsrAudioEncoder(tower, **settings)
