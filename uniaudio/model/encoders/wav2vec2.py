"""Transformers that hear the waveform itself (wav2vec 2.0, HuBERT, WavLM, data2vec-audio, UniSpeech), packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, PretrainedConfig

from uniaudio.errors import UserError
from uniaudio.model.activation_checkpointing import run_layer
from uniaudio.model.attention import Segments, packed_attention, project_heads
from uniaudio.model.encoders.base import AudioEncoder, freeze_mask_embedding
from uniaudio.model.encoders.chunking import CHUNK_SECONDS, convert_to_float, cut_overlapping
from uniaudio.model.encoders.padded import compute_bias_gate, encode_wave_padded
from uniaudio.model.encoders.weights import load_pretrained
from uniaudio.model.model_files import (
    RANDOM,
    disable_random_skips,
    find_model_folder,
    read_extractor_settings,
    read_model_config,
    read_stock_config,
)
from uniaudio.model.tree_attention import attend_row
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE

KINDS = ("wav2vec2", "hubert", "wavlm", "data2vec-audio", "unispeech", "unispeech-sat")
VARIANCE_FLOOR = 1e-7  # of the stock feature extractor


class WaveAudioEncoder(AudioEncoder):
    """The stock modules of the wav2vec 2.0 family (Baevski et al. 2020) over clips side by side, without padding.

    A clip's frames equal those of the stock model on the clip alone. In the convolutions clips lie one after the other
    on whole strides, where no frame of a clip reaches beyond it; statistics over time (the group norm of the base
    models) and attention are taken per clip. Clips longer than ``chunk_seconds`` are cut; chunks overlap by what the
    convolutions reach beyond a stride, so the number of frames is that of the uncut clip.

    Args:
        model: the stock module; its parameters are trained in place.
        normalize: bring every clip to mean 0 and variance 1, as the checkpoint's feature extractor does.
        chunk_seconds: longest stretch of sound that attends to itself, rounded to whole frames.

    Raises:
        UserError: when ``chunk_seconds`` is not above 0.
    """

    calls_by_clip = False

    def __init__(self, model: Any, normalize: bool = False, chunk_seconds: float = CHUNK_SECONDS) -> None:
        super().__init__()
        if not chunk_seconds > 0:
            raise UserError(f"chunk_seconds: {chunk_seconds:g} is not above 0")
        config = model.config
        self.model = model
        self.normalize = normalize
        self.dim = config.hidden_size
        self.layer_dims = (self.dim,) * (config.num_hidden_layers + 1)
        self.kernels, self.strides = tuple(config.conv_kernel), tuple(config.conv_stride)
        self.stride, self.field = 1, 1  # samples from frame to frame, and of one frame
        for kernel, stride in zip(self.kernels[::-1], self.strides[::-1], strict=True):
            self.field = (self.field - 1) * stride + kernel
            self.stride *= stride
        self.frame_rate = SAMPLE_RATE / self.stride
        self.per_chunk = max(1, round(chunk_seconds * self.frame_rate))
        self.reach = self.per_chunk / self.frame_rate
        self.pre_norm = bool(getattr(config, "do_stable_layer_norm", False))
        self.layer = apply_wave_layer
        freeze_mask_embedding(model)

    def num_frames(self, samples: int) -> int:
        """Return ``floor((samples - 400) / 320) + 1`` (for the usual convolutions), at least one."""
        return max(1, (samples - self.field) // self.stride + 1)

    def encode_clips(self, audio: Ragged, layers: bool, masks: Tensor | None) -> list[Tensor]:
        waves = audio.with_values(convert_to_float(audio.values))
        if self.normalize:
            waves = normalize_rows(waves)
        chunks = cut_overlapping(waves, self.per_chunk, self.num_frames, self.stride, self.field)
        features = self.convolve(chunks)
        projected = self.model.feature_projection(features.values[None])
        hidden = (projected[0] if isinstance(projected, tuple) else projected)[0]
        return self.transform(features.with_values(hidden), layers)

    def forward_padded(self, samples: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode clips of at most one chunk, see ``AudioEncoder``."""
        return encode_wave_padded(self, samples, lengths)

    def convolve(self, waves: Ragged) -> Ragged:
        """Run the convolutions over all chunks in one buffer and pick every chunk's own frames ``[A, conv]``."""
        sizes = -(-waves.lengths // self.stride) * self.stride
        starts, lengths = Ragged.find_row_starts(sizes), waves.lengths
        layers = self.model.feature_extractor.conv_layers
        hidden = waves.extend_rows(sizes).values[None, None].to(layers[0].conv.weight.dtype)
        for layer, kernel, stride in zip(layers, self.kernels, self.strides, strict=True):
            starts = torch.div(starts, stride, rounding_mode="floor")
            lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
            if isinstance(getattr(layer, "layer_norm", None), nn.GroupNorm):
                hidden = layer.conv(hidden)
                hidden = layer.activation(normalize_over_time(hidden, layer.layer_norm, starts, lengths))
            else:
                hidden = layer(hidden)
        rows = Ragged.index_slices(starts, lengths).to(hidden.device, non_blocking=True)
        return Ragged(hidden[0].t()[rows], lengths)

    def transform(self, frames: Ragged, layers: bool) -> list[Tensor]:
        """Run the transformer over projected frames ``[A, E]``; the last state is its output."""
        encoder = self.model.encoder
        hidden = frames.values + self.positions(frames)
        if not self.pre_norm:
            hidden = encoder.layer_norm(hidden)
        hidden = encoder.dropout(hidden)
        segments = Segments.of(frames.lengths, frames.device)
        first = encoder.layers[0].attention
        bias = RelativeBias(first, segments.longest) if hasattr(first, "rel_attn_embed") else None
        states = []
        for layer in encoder.layers:
            if layers:
                states.append(hidden)
            hidden = run_layer(self.recomputes, self.layer, layer, hidden, segments, bias, self.pre_norm)
        return [*states, encoder.layer_norm(hidden) if self.pre_norm else hidden]

    def positions(self, frames: Ragged) -> Float[Tensor, "A E"]:
        """Apply the positional convolutions with silence between chunks, as it is at the ends of one alone."""
        embed = self.model.encoder.pos_conv_embed
        stack = list(embed.layers) if hasattr(embed, "layers") else None
        kernel = (stack[0] if stack else embed).conv.kernel_size[0]
        sizes = frames.lengths + kernel // 2
        starts = Ragged.find_row_starts(sizes)
        rows = Ragged.index_slices(starts, frames.lengths).to(frames.device, non_blocking=True)
        buffer = frames.values.new_zeros(int(sizes.sum()), self.dim).index_copy(0, rows, frames.values)
        if stack is None:
            return embed(buffer[None])[0][rows]
        real = buffer.new_zeros(len(buffer), 1).index_fill(0, rows, 1.0)
        for layer in stack:  # their biases would fill the silence, so it is made anew
            buffer = layer(buffer.t()[None])[0].t() * real
        return buffer[rows]


class RelativeBias:
    """WavLM's position bias, computed once in a forward, before the layers.

    An object, and not a tensor: compiled layers would be compiled again for other numbers of frames.

    Args:
        first: attention of the first layer, which computes it. longest: the largest number of frames of a chunk.
    """

    def __init__(self, first: Any, longest: int) -> None:
        self.of_longest: Tensor = first.compute_bias(longest, longest)

    def of(self, frames: int) -> Float[Tensor, "H L L"]:
        """Return the bias between all pairs of ``frames`` positions, which depends on their distance alone."""
        return self.of_longest[:, :frames, :frames]


def apply_wave_layer(
    layer: Any, hidden: Float[Tensor, "A E"], segments: Segments, bias: RelativeBias | None, pre_norm: bool
) -> Float[Tensor, "A E"]:
    """Apply one stock layer to packed frames, norms before or after its halves."""
    attended = apply_wave_attention(
        layer.attention, layer.layer_norm(hidden) if pre_norm else hidden, segments, bias
    )
    hidden = hidden + layer.dropout(attended)
    if pre_norm:
        hidden = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
        adapter = getattr(layer, "adapter_layer", None)
        return hidden if adapter is None else hidden + adapter(hidden)
    hidden = layer.layer_norm(hidden)
    return layer.final_layer_norm(hidden + layer.feed_forward(hidden))


def apply_wave_attention(
    attention: Any, hidden: Float[Tensor, "A E"], segments: Segments, bias: RelativeBias | None
) -> Float[Tensor, "A E"]:
    """Apply the stock projections around packed attention, with WavLM's gated position bias where there is one."""
    query, key, value = project_heads(attention, hidden)
    dropout = attention.dropout if attention.training else 0.0
    if bias is None:
        mixed = packed_attention(query, key, value, segments, causal=False, dropout=dropout)
    else:
        gate = compute_bias_gate(attention, hidden.view(query.shape))
        mixed = attend_with_bias(query, key, value, gate, segments, bias, dropout)
    return attention.out_proj(mixed.reshape(len(hidden), -1))


@torch.compiler.disable(reason="it loops over segments, whose number and lengths change with every batch")
def attend_with_bias(
    query: Float[Tensor, "A H d"],
    key: Float[Tensor, "A H d"],
    value: Float[Tensor, "A H d"],
    gate: Float[Tensor, "A H"],
    segments: Segments,
    bias: RelativeBias,
    dropout: float,
) -> Float[Tensor, "A H d"]:
    """Attend within every segment under the position bias, as much as every frame and head listens to it."""
    parts = []
    for q, k, v, g in zip(*(x.split(segments.lengths) for x in (query, key, value, gate)), strict=True):
        gated = (g.t()[..., None] * bias.of(len(q))).to(q.dtype)
        parts.append(attend_row(q, k, v, gated[None], dropout=dropout))
    return torch.cat(parts)


def normalize_over_time(
    hidden: Float[Tensor, "1 C T"], norm: nn.GroupNorm, starts: Tensor, lengths: Tensor
) -> Float[Tensor, "1 C T"]:
    """Apply a group norm to every chunk's own frames, in float32; frames of no chunk stay as they are.

    One call per chunk: sums over all chunks at once (``index_add``) lose three digits over 30 s in float32.
    """
    exact = torch.promote_types(hidden.dtype, torch.float32)
    weight, bias = norm.weight.to(exact), norm.bias.to(exact)
    ends = [*starts[1:].tolist(), hidden.shape[2]]
    pieces = []
    for start, length, end in zip(starts.tolist(), lengths.tolist(), ends, strict=True):
        hidden_part = hidden[..., start : start + length].to(exact)
        pieces.append(F.group_norm(hidden_part, norm.num_groups, weight, bias, norm.eps).to(hidden.dtype))
        pieces.append(hidden[..., start + length : end])
    return torch.cat(pieces, 2)


def normalize_rows(waves: Ragged) -> Ragged:
    """Bring every clip to mean 0 and variance 1."""
    rows = [F.layer_norm(row, row.shape, eps=VARIANCE_FLOOR) for row in waves.rows()]
    return waves.with_values(torch.cat(rows))


def check_parts(config: PretrainedConfig, folder: Path) -> None:
    """Refuse the options that are not built here.

    Raises:
        UserError: naming the option.
    """
    for option in ("add_adapter", "conv_pos_batch_norm"):
        if getattr(config, option, False):
            raise UserError(f"{folder}: {option} is set in its config.json, which is not supported")


def does_normalize(folder: Path) -> bool:
    """Return what the checkpoint's feature extractor does to a waveform, False where the folder has none."""
    settings = read_extractor_settings(folder)
    return bool(settings) and bool(settings.get("do_normalize", True))


def load_wave(
    path: str, revision: str | None = None, seed: int = 0, chunk_seconds: float = CHUNK_SECONDS
) -> WaveAudioEncoder:
    """Load a model of the family in float32 by folder or Hub name; heads for recognition and the like are left out.

    ``random:PATH`` gives the architecture of PATH with weights drawn from ``seed``.

    Raises:
        UserError: when there is no such folder, it holds another family, a tensor is missing, or it has parts that are
            not built here.
    """
    folder = find_model_folder(path, revision)
    kind = read_model_config(folder)["model_type"]
    if kind not in KINDS:
        raise UserError(f"{folder} holds a {kind} model, not one of {', '.join(KINDS)}")
    config = disable_random_skips(read_stock_config(folder))
    check_parts(config, folder)
    config._attn_implementation = "eager"  # the stock attention is never called
    stock = AutoModel._model_mapping[type(config)]
    model = load_pretrained(stock, folder, seed if path.startswith(RANDOM) else None, config)
    return WaveAudioEncoder(model, does_normalize(folder), chunk_seconds)
