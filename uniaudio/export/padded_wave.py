"""The padded twin of the wav2vec 2.0 family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.export.padded import PaddedTwin, inside, padded_attention
from uniaudio.model.encoders.wave import VARIANCE_FLOOR, WaveAudioEncoder, bias_gate


class PaddedWave(PaddedTwin):
    """``WaveAudioEncoder`` for clips that are not cut: of up to ``chunk_seconds`` (30 s)."""

    def __init__(self, encoder: WaveAudioEncoder) -> None:
        super().__init__()
        self.model = encoder.model
        self.normalize, self.pre_norm = encoder.normalize, encoder.pre_norm
        self.kernels, self.strides = encoder.kernels, encoder.strides
        self.field = encoder.field
        self.longest = encoder.per_chunk * encoder.stride + encoder.field - encoder.stride

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; the clips' samples stand at the beginning of their rows."""
        size = samples.shape[1]
        mask = inside(lengths, size)
        samples = torch.where(mask, samples, torch.zeros_like(samples))
        if self.normalize:
            samples = normed(samples[:, None], mask[:, None], VARIANCE_FLOOR)[:, 0]
        samples = F.pad(samples, (0, torch.sym_max(size, self.field) - size))
        hidden, counts = self.convolve(samples[:, None], lengths.clamp(min=self.field))
        projected = self.model.feature_projection(hidden.transpose(1, 2))
        hidden = projected[0] if isinstance(projected, tuple) else projected
        real = inside(counts, hidden.shape[1])[..., None]
        hidden = self.transform(torch.where(real, hidden, torch.zeros_like(hidden)), real)
        return torch.where(real, hidden, torch.zeros_like(hidden)), counts

    def convolve(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Run the convolutions over ``[B, 1, S]``: ``[B, C, A]`` and the real frames ``[B]``."""
        for layer, kernel, stride in zip(
            self.model.feature_extractor.conv_layers, self.kernels, self.strides, strict=True
        ):
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
            norm = getattr(layer, "layer_norm", None)
            if isinstance(norm, nn.GroupNorm):
                hidden = layer.conv(hidden)
                mask = inside(lengths, hidden.shape[2])[:, None]
                hidden = normed(hidden, mask, norm.eps) * norm.weight[:, None] + norm.bias[:, None]
                hidden = layer.activation(hidden)
            else:
                hidden = layer(hidden)
        return hidden, lengths

    def transform(self, hidden: Tensor, real: Tensor) -> Tensor:
        """Run the transformer over ``[B, A, E]``, 0 where ``real [B, A, 1]`` is False."""
        encoder = self.model.encoder
        hidden = hidden + self.positions(hidden, real)
        if not self.pre_norm:
            hidden = encoder.layer_norm(hidden)
        mask = real.transpose(1, 2)[:, None]  # [B, 1, 1, A]
        first = encoder.layers[0].attention
        size = hidden.shape[1]
        bias = first.compute_bias(size, size) if hasattr(first, "rel_attn_embed") else None
        for layer in encoder.layers:
            inner = layer.layer_norm(hidden) if self.pre_norm else hidden
            seen = mask if bias is None else gated(layer.attention, inner, bias, mask)
            hidden = hidden + padded_attention(layer.attention, inner, seen)
            if self.pre_norm:
                hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
                adapter = getattr(layer, "adapter_layer", None)
                hidden = hidden if adapter is None else hidden + adapter(hidden)
            else:
                hidden = layer.layer_norm(hidden)
                hidden = layer.final_layer_norm(hidden + layer.feed_forward(hidden))
        return encoder.layer_norm(hidden) if self.pre_norm else hidden

    def positions(self, hidden: Tensor, real: Tensor) -> Tensor:
        """Apply the positional convolutions; between them, silence stays silence."""
        embed: Any = self.model.encoder.pos_conv_embed
        if not hasattr(embed, "layers"):
            return embed(hidden)
        for layer in embed.layers:
            hidden = layer(hidden.transpose(1, 2)).transpose(1, 2) * real
        return hidden


def normed(values: Tensor, mask: Tensor, eps: float) -> Tensor:
    """Bring each row of ``[B, C, T]`` to mean 0 and variance 1 over the places where ``mask [B, 1, T]`` is True.

    Places outside are 0 after. Sums run in float64, for they are long.
    """
    exact = torch.where(mask, values, torch.zeros_like(values)).double()
    count = mask.sum(-1, keepdim=True).double()
    mean = exact.sum(-1, keepdim=True) / count
    centred = torch.where(mask, exact - mean, torch.zeros_like(exact))
    variance = centred.square().sum(-1, keepdim=True) / count
    return (centred / (variance + eps).sqrt()).to(values.dtype)


def gated(attention: Any, hidden: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """Return WavLM's gated position bias ``[B, H, A, A]``, minus infinity at keys that are not real."""
    heads = hidden.unflatten(-1, (attention.num_heads, attention.head_dim))
    gate = bias_gate(attention, heads.flatten(0, 1)).unflatten(0, hidden.shape[:2])  # [B, A, H]
    return (gate.transpose(1, 2)[..., None] * bias).masked_fill(~mask, -torch.inf)
