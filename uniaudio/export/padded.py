"""Encoders over padded tensors with masks, in operations whose shapes follow the input: what an ONNX graph can hold.

The encoders of this package cut and pack by lengths on the host, which a traced graph would freeze. The twins here
share their weights and give the same frames, up to rounding, at the price of computing the padding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.model.encoders.whisper import WhisperAudioEncoder
from uniaudio.model.mel import EDGE, FRAME, HOP, REACH, WINDOW
from uniaudio.types import SAMPLE_RATE


def inside(lengths: Tensor, size: int) -> Tensor:
    """Return ``[B, size]``, True on the first ``lengths[b]`` positions of row ``b``."""
    return torch.arange(size, device=lengths.device)[None] < lengths[:, None]


def ceil_div(lengths: Tensor, by: int) -> Tensor:
    """Return ``ceil(lengths / by)`` for lengths of at least 0."""
    return torch.div(lengths + (by - 1), by, rounding_mode="floor")


class PaddedTwin(nn.Module):
    """The contract: float samples ``[B, S]`` and int64 lengths ``[B]`` in, frames ``[B, A, E]`` and counts ``[B]`` out.

    ``A`` is the number of frames of a clip of S samples; frames beyond a clip's own count are 0.

    Attributes:
        longest: samples of the longest clip it takes.
    """

    longest: int

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class PaddedLogMel(nn.Module):
    """Whisper's log-mel, the Fourier transform as a product with its matrix in float64.

    In float32 the product would lose the quiet bins, 80 dB below the loudest, that the logarithm lifts.
    """

    basis: Tensor
    filters: Tensor

    def __init__(self, filters: Tensor, window: Tensor) -> None:
        super().__init__()
        time = torch.arange(WINDOW, dtype=torch.float64)
        angles = 2 * math.pi / WINDOW * time[:, None] * torch.arange(WINDOW // 2 + 1)
        basis = torch.cat([angles.cos(), angles.sin()], 1) * window.double()[:, None]
        self.register_buffer("basis", basis)  # [400, 402]
        self.register_buffer("filters", filters.double())  # [201, M]

    def forward(self, samples: Tensor, mel_lengths: Tensor) -> Tensor:
        """Map ``[B, F * 160]``, silence behind each clip, and mel frames ``[B]`` to ``[B, F, M]``, 0 beyond a clip."""
        left = samples[:, 1 : EDGE + 1].flip(1)
        mirrored = samples.flip(1)[:, 1 : 2 * HOP - EDGE + 1]  # what the last window reaches beyond the clip
        full = (mel_lengths == REACH // HOP)[:, None]
        right = torch.where(full, mirrored, torch.zeros_like(mirrored))
        hops = torch.cat([left, samples, right], 1).unflatten(1, (-1, HOP))
        windows = torch.cat([hops[:, :-2], hops[:, 1:-1], hops[:, 2:, : WINDOW - 2 * HOP]], 2)
        real, imaginary = (windows.double() @ self.basis).chunk(2, -1)
        power = (real.square() + imaginary.square()) @ self.filters
        log_mel = power.clamp(min=1e-10).log10().float()
        mask = inside(mel_lengths, log_mel.shape[1])[..., None]
        highest = torch.where(mask, log_mel, torch.full_like(log_mel, -1e30)).amax((1, 2), keepdim=True)
        scaled = (torch.maximum(log_mel, highest - 8.0) + 4.0) / 4.0
        return torch.where(mask, scaled, torch.zeros_like(scaled))


class PaddedWhisper(PaddedTwin):
    """``WhisperAudioEncoder`` and the pooled towers, for clips of up to 30 s, without ``tail_frames``."""

    longest = REACH

    def __init__(self, encoder: WhisperAudioEncoder) -> None:
        super().__init__()
        self.whisper = encoder.whisper
        self.mel = PaddedLogMel(encoder.mel.filters, encoder.mel.window)
        self.frame, self.pool = encoder.frame, encoder.pool
        self.least = round((encoder.pad_to or 0) * SAMPLE_RATE)

    def forward(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; the clips' samples stand at the beginning of their rows."""
        size = samples.shape[1]
        counts = ceil_div(lengths, self.frame).clamp(min=1)
        heard = (counts * self.frame).clamp(min=self.least)
        mel_lengths = ceil_div(heard, FRAME) * 2
        room = (size + self.frame - 1) // self.frame * self.frame  # ONNX divides towards 0
        if self.least:
            room = torch.sym_max(room, -(-self.least // self.frame) * self.frame)
        silent = torch.zeros_like(samples)
        samples = F.pad(torch.where(inside(lengths, size), samples, silent), (0, room - size))
        mel = self.mel(samples, mel_lengths)
        hidden = self.encode(mel, mel_lengths)
        mask = inside(counts, hidden.shape[1])[..., None]
        frames = torch.where(mask, hidden, torch.zeros_like(hidden))
        return (frames[:, : (size + self.frame - 1) // self.frame] if self.least else frames), counts

    def encode(self, mel: Tensor, mel_lengths: Tensor) -> Tensor:
        """Run convolutions and layers over ``[B, F, M]`` to ``[B, A, E]``."""
        whisper = self.whisper
        real = inside(mel_lengths, mel.shape[1])[:, None].to(mel.dtype)
        hidden = F.gelu(whisper.conv1(mel.transpose(1, 2))) * real
        hidden = F.gelu(whisper.conv2(hidden)).transpose(1, 2)
        hidden = hidden + whisper.embed_positions.weight[: hidden.shape[1]]
        lengths = torch.div(mel_lengths, 2, rounding_mode="floor")
        mask = inside(lengths, hidden.shape[1])[:, None, None]
        for layer in whisper.layers:
            attended = padded_attention(layer.self_attn, layer.self_attn_layer_norm(hidden), mask)
            hidden = hidden + attended
            inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
            hidden = hidden + layer.fc2(inner)
        if self.pool > 1:
            hidden = hidden.unflatten(1, (-1, self.pool)).mean(2)
        return whisper.layer_norm(hidden)


def padded_attention(attention: Any, hidden: Tensor, mask: Tensor) -> Tensor:
    """Apply stock projections around attention over ``[B, A, E]`` to the keys where ``mask [B, 1, 1, A]`` is True."""
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (
        projection(hidden).unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)
        for projection in projections
    )
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))
