"""Encoders over padded clips with static shapes, for ``torch.export`` and ``torch.compile(fullgraph=True)``.

Lengths are tensors here that nothing branches on, so a graph fits all of them. The frames equal those of the packed
forward up to rounding; that one computes nothing for padding and is what training uses.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.model.attention import project_heads
from uniaudio.model.encoders.shared_silence import encode_silent_frames, list_silent_spans
from uniaudio.model.mel import EDGE, FRAME, HOP, REACH, WINDOW


def count_up(size: int, like: Tensor) -> Tensor:
    """Return 0 ... size - 1 on the device of a tensor."""
    return torch.arange(size, device=like.device)


def divide_up(values: Tensor, step: int) -> Tensor:
    """Return ``ceil(values / step)`` of whole numbers."""
    return torch.div(values + step - 1, step, rounding_mode="floor")


def attend_padded(
    attention: Any, hidden: Tensor, mask: Tensor, scale: float, seen: Tensor | None = None
) -> Tensor:
    """Apply the projections of a stock layer around attention.

    Args:
        hidden: ``[N, L, E]``. mask: ``[N, 1 or H, 1 or L, keys]``, bool, or added to the scores.
        seen: ``[N, keys, E]`` that is attended to; None: ``hidden``.
    """
    query, key, value = (x.transpose(1, 2) for x in project_heads(attention, hidden, seen))
    dropout = attention.dropout if attention.training else 0.0
    mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))


def compute_padded_mel(mel: Any, samples: Tensor, present: Tensor) -> Tensor:
    """Return Whisper's log-mel ``[N, 2 L, M]`` of chunks ``[N, 320 L]``, 0 beyond their ``present [N]`` frames.

    Args:
        mel: the ``LogMel`` of the encoder. samples: float32, 0 beyond a chunk's own.
    """
    edge = samples[:, :EDGE] * 0
    if samples.shape[1] == REACH:  # a chunk that fills the 30 s meets the reflection at its end
        edge = torch.where(present[:, None] == REACH // FRAME, samples[:, -EDGE - 1 : -1].flip(1), edge)
    buffer = torch.cat([samples[:, 1 : EDGE + 1].flip(1), samples, edge], 1)
    count = samples.shape[1] // HOP
    with torch.autocast(samples.device.type, enabled=False):
        windows = buffer.unfold(1, WINDOW, HOP)[:, :count] * mel.window
        power = torch.fft.rfft(windows).abs().square()
        log_mel = (power @ mel.filters).clamp(min=1e-10).log10()
    real = count_up(count, present) < 2 * present[:, None]
    highest = log_mel.amax(2).masked_fill(~real, -torch.inf).amax(1)
    scaled = (torch.maximum(log_mel, highest[:, None, None] - 8.0) + 4.0) / 4.0
    return scaled * real[..., None]


def encode_whisper_padded(encoder: Any, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Encode ``[B, S]`` float32 with ``[B]`` real samples to frames ``[B, A, E]`` and their numbers ``[B]``.

    Args:
        encoder: a ``WhisperAudioEncoder``. samples: 0 beyond a clip's own.
    """
    whisper, pool, limit = encoder.whisper, encoder.pool, REACH // FRAME
    total, chunks = samples.shape[1], -(-samples.shape[1] // REACH)
    width = limit
    if chunks == 1:
        width = (-(-total // encoder.frame) + encoder.tail_frames) * pool
        width = max(width, count_least_frames(encoder)) + encoder.masked_padding
        width = min(width + -width % pool, limit)
    step = width * FRAME
    parts = F.pad(samples, (0, max(chunks * step - total, 0)))[:, : chunks * step].reshape(-1, step)
    kept, attending, present = count_whisper_frames(encoder, lengths, chunks)
    dtype = whisper.conv1.weight.dtype
    mel = compute_padded_mel(encoder.mel, parts, present).to(dtype)
    real = (count_up(2 * width, present) < 2 * present[:, None])[:, None].to(dtype)
    hidden = F.gelu(whisper.conv1(mel.transpose(1, 2))) * real
    hidden = F.gelu(whisper.conv2(hidden)).transpose(1, 2) + whisper.embed_positions.weight[:width]
    hidden = F.dropout(hidden, whisper.dropout, encoder.training)
    mask = torch.where(count_up(width, present) < attending.clamp(min=1)[:, None], 0.0, -torch.inf)
    silence = None
    if encoder.pad_stride is not None:
        begins, ends = list_silent_spans(encoder.pad_frames, encoder.pad_stride)
        silence = encode_silent_frames(whisper, (begins + ends) // 2)[None].to(dtype)
        begins, ends = begins.to(mask.device), ends.to(mask.device)
        behind = ends - torch.maximum(begins, attending[:, None])
        mask = torch.cat([mask, behind.clamp(min=0).log()], 1)
        silent_mask = (ends - begins).log().to(dtype)[None, None, None]
    mask = mask.to(dtype)[:, None, None]
    for layer in whisper.layers:
        hidden, before = apply_padded_layer(layer, hidden, mask, silence), silence
        silence = None if before is None else apply_padded_layer(layer, before, silent_mask)
    if pool > 1:
        hidden = hidden.unflatten(1, (-1, pool)).mean(2)
    frames = whisper.layer_norm(hidden).reshape(len(samples), -1, encoder.dim)
    return frames[:, : encoder.num_frames(total)], kept.view(-1, chunks).sum(1)


def count_least_frames(encoder: Any) -> int:
    """Return the frames before pooling that every chunk has at least; shared silence adds none."""
    return 0 if encoder.pad_stride is not None else encoder.pad_frames


def count_whisper_frames(encoder: Any, lengths: Tensor, chunks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return for every chunk of 30 s, ``[B * chunks]``, how many frames are given out, attended to, and convolved.

    Args:
        encoder: a ``WhisperAudioEncoder``. lengths: ``[B]`` real samples.
    """
    pool, limit = encoder.pool, REACH // FRAME
    begins = count_up(chunks, lengths) * REACH
    length = (lengths[:, None] - begins).clamp(0, REACH).flatten()
    if encoder.masked_padding:
        frames = divide_up(length.view(-1, chunks), FRAME)
        attending = torch.where(begins == 0, frames.clamp(min=pool), frames).flatten()
        return torch.div(attending, pool, rounding_mode="floor"), attending, (attending + 1).clamp(max=limit)
    exists = (lengths[:, None] > begins).flatten()
    kept = divide_up(length, encoder.frame).clamp(min=1) * exists
    attending = divide_up(length, FRAME).clamp(min=max(count_least_frames(encoder), 1))
    if pool > 1 or encoder.tail_frames:
        attending = torch.maximum(attending, (kept + encoder.tail_frames) * pool).clamp(max=limit)
    if encoder.keep_tail:
        kept = kept + (-kept % (limit // pool)).clamp(max=encoder.tail_frames)
    return kept, attending, attending


def apply_padded_layer(layer: Any, hidden: Tensor, mask: Tensor, behind: Tensor | None = None) -> Tensor:
    """Apply a layer of Whisper to ``[N, L, E]``.

    Args:
        mask: added to the scores, ``[N, 1, 1, keys]``. behind: ``[1, M, E]``, which all rows attend to after their own.
    """
    normed = layer.self_attn_layer_norm(hidden)
    seen = normed
    if behind is not None:
        seen = torch.cat([normed, layer.self_attn_layer_norm(behind).expand(len(hidden), -1, -1)], 1)
    attended = attend_padded(layer.self_attn, normed, mask, layer.self_attn.head_dim**-0.5, seen)
    hidden = hidden + F.dropout(attended, layer.dropout, layer.training)
    inner = layer.activation_fn(layer.fc1(layer.final_layer_norm(hidden)))
    inner = layer.fc2(F.dropout(inner, layer.activation_dropout, layer.training))
    return hidden + F.dropout(inner, layer.dropout, layer.training)


def encode_wave_padded(encoder: Any, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Encode ``[B, S]`` float32 with ``[B]`` real samples to frames ``[B, A, E]`` and their numbers ``[B]``.

    Args:
        encoder: a ``WaveAudioEncoder``. samples: 0 beyond a clip's own.

    Raises:
        ValueError: for clips longer than a chunk.
    """
    longest = encoder.per_chunk * encoder.stride + encoder.field - encoder.stride
    if samples.shape[1] > longest:
        raise ValueError(
            f"padded: clips have at most {longest} samples here, found {samples.shape[1]}; cut them"
        )
    model = encoder.model
    if encoder.normalize:
        samples = normalize_padded(samples, lengths)
    samples = F.pad(samples, (0, max(0, encoder.field - samples.shape[1])))
    hidden = samples[:, None].to(model.feature_projection.projection.weight.dtype)
    count = lengths.clamp(min=encoder.field)
    for layer, kernel, stride in zip(
        model.feature_extractor.conv_layers, encoder.kernels, encoder.strides, strict=True
    ):
        count = torch.div(count - kernel, stride, rounding_mode="floor") + 1
        if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
            hidden = layer.activation(normalize_padded_groups(layer.conv(hidden), layer.layer_norm, count))
        else:
            hidden = layer(hidden)
    projected = model.feature_projection(hidden.transpose(1, 2))
    hidden = projected[0] if isinstance(projected, tuple) else projected
    size = hidden.shape[1]
    real = count_up(size, count) < count[:, None]
    hidden = hidden * real[..., None]
    stack = model.encoder
    hidden = hidden + embed_padded_positions(stack.pos_conv_embed, hidden, real)
    if not encoder.pre_norm:
        hidden = stack.layer_norm(hidden)
    hidden = stack.dropout(hidden)
    first = stack.layers[0].attention
    bias = first.compute_bias(size, size) if hasattr(first, "rel_attn_embed") else None
    for layer in stack.layers:
        inner = layer.layer_norm(hidden) if encoder.pre_norm else hidden
        mask = real[:, None, None]
        if bias is not None:
            heads = inner.unflatten(2, (first.num_heads, first.head_dim))
            gate = compute_bias_gate(layer.attention, heads).transpose(1, 2)
            mask = (gate[..., None] * bias).to(inner.dtype).masked_fill(~mask, -torch.inf)
        attended = attend_padded(layer.attention, inner, mask, layer.attention.head_dim**-0.5)
        hidden = hidden + layer.dropout(attended)
        if encoder.pre_norm:
            hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
            adapter = getattr(layer, "adapter_layer", None)
            hidden = hidden if adapter is None else hidden + adapter(hidden)
        else:
            hidden = layer.layer_norm(hidden)
            hidden = layer.final_layer_norm(hidden + layer.feed_forward(hidden))
    return (stack.layer_norm(hidden) if encoder.pre_norm else hidden), count


def normalize_padded(samples: Tensor, lengths: Tensor) -> Tensor:
    """Bring every clip to mean 0 and variance 1 over its own samples, 0 beyond them."""
    real = count_up(samples.shape[1], lengths) < lengths[:, None]
    size = lengths[:, None].to(samples.dtype)
    centered = (samples - samples.sum(1, keepdim=True) / size) * real
    return centered * (centered.square().sum(1, keepdim=True) / size + 1e-7).rsqrt()


def normalize_padded_groups(hidden: Tensor, norm: nn.GroupNorm, count: Tensor) -> Tensor:
    """Apply a group norm to ``[B, C, T]`` over each clip's own ``count [B]`` steps, in float32 at least."""
    exact = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    groups = exact.unflatten(1, (norm.num_groups, -1))
    real = (count_up(hidden.shape[2], count) < count[:, None])[:, None, None]
    size = count[:, None, None, None] * groups.shape[2]
    centered = groups - (groups * real).sum((2, 3), keepdim=True) / size
    variance = (centered * real).square().sum((2, 3), keepdim=True) / size
    scaled = (centered * (variance + norm.eps).rsqrt()).flatten(1, 2)
    return (scaled * norm.weight.to(exact)[:, None] + norm.bias.to(exact)[:, None]).to(hidden.dtype)


def embed_padded_positions(embed: Any, hidden: Tensor, real: Tensor) -> Tensor:
    """Apply the positional convolutions to ``[B, L, E]``, with silence beyond the ``real [B, L]`` frames."""
    if not hasattr(embed, "layers"):
        return embed(hidden)
    for layer in embed.layers:  # their biases would fill the silence
        hidden = layer(hidden.transpose(1, 2)).transpose(1, 2) * real[..., None]
    return hidden


def compute_bias_gate(attention: Any, hidden: Tensor) -> Tensor:
    """Return how much every frame and head listens to positions (WavLM, Chen et al. 2022, section 3.1).

    Args:
        hidden: ``[..., H, d]``; the result is ``[..., H]``.
    """
    halves = attention.gru_rel_pos_linear(hidden).unflatten(-1, (2, 4)).sum(-1).sigmoid()
    update, reset = halves.unbind(-1)
    return update * (reset * attention.gru_rel_pos_const.flatten() - 1.0) + 2.0
