"""Attention over packed rows: every row attends to itself only, and no mask is ever built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from uniaudio.model.branches import Branches, branched_attention

PACKED = "uniaudio_packed"  # the name in transformers' AttentionInterface


@dataclass(frozen=True)
class Segments:
    """Where the rows of a packed sequence begin and end.

    Args:
        lengths: tokens of every row, on the host. cu_seqlens: ``[B + 1]`` int32 on the device. longest: of lengths.
        branches: what of every row are continuations that do not see each other, where there are any.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    longest: int
    branches: Branches | None = None

    @classmethod
    def of(
        cls, lengths: Tensor | Sequence[int], device: torch.device, branches: Branches | None = None
    ) -> Segments:
        """Build from row lengths (a CPU tensor or a list); rows of length 0 are allowed."""
        counts = tuple(int(n) for n in lengths)
        offsets = torch.tensor((0, *counts), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(counts, offsets.to(device, non_blocking=True), max(counts, default=0), branches)


def packed_attention(
    query: Float[Tensor, "T H d"],
    key: Float[Tensor, "S G d"],
    value: Float[Tensor, "S G d"],
    segments: Segments,
    causal: bool,
    scale: float | None = None,
    dropout: float = 0.0,
    key_segments: Segments | None = None,
) -> Float[Tensor, "T H d"]:
    """Attend within every segment; ``G`` key heads serve ``H`` query heads (grouped-query when ``G < H``).

    With ``key_segments`` queries of a segment attend to the keys of the segment of the same number, of another length.

    On CUDA in bf16 or fp16 one call of torch's variable-length kernel does it; elsewhere one
    ``scaled_dot_product_attention`` per segment. The kernel knows no dropout, so dropout takes the second way too.
    Segments with branches attend as ``branched_attention`` says where it is causal.
    """
    if causal and segments.branches is not None:
        return branched_attention(query, key, value, segments.branches, scale)
    fast = query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0
    keys = key_segments or segments
    if fast:
        return variable_length_attention(query, key, value, segments, keys, causal, scale)
    grouped = key.shape[1] != query.shape[1]
    parts = []
    rows = (query.split(segments.lengths), key.split(keys.lengths), value.split(keys.lengths))
    for q, k, v in zip(*rows, strict=True):
        part = F.scaled_dot_product_attention(
            q.transpose(0, 1)[None],
            k.transpose(0, 1)[None],
            v.transpose(0, 1)[None],
            dropout_p=dropout,
            is_causal=causal,
            scale=scale,
            enable_gqa=grouped,
        )
        parts.append(part[0].transpose(0, 1))
    return torch.cat(parts) if parts else query


def variable_length_attention(
    query: Float[Tensor, "T H d"],
    key: Float[Tensor, "S G d"],
    value: Float[Tensor, "S G d"],
    segments: Segments,
    keys: Segments,
    causal: bool,
    scale: float | None,
) -> Float[Tensor, "T H d"]:
    """Call torch's FlashAttention kernel for packed rows (CUDA, bf16 or fp16)."""
    from torch.nn.attention.varlen import varlen_attn  # CUDA builds only

    if key.shape[1] != query.shape[1]:
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    mixed = varlen_attn(
        query,
        key,
        value,
        segments.cu_seqlens,
        keys.cu_seqlens,
        segments.longest,
        keys.longest,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
    )
    assert isinstance(mixed, Tensor)  # a pair only when the log-sum-exp is asked for
    return mixed


def packed_attention_for_transformers(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Serve the stock attention layers: ``[1, H, T, d]`` in, ``[1, T, H, d]`` out, ``segments`` from the call's kwargs.

    Raises:
        ValueError: when a mask was built or the segments did not arrive, either of which would mix the rows.
    """
    if segments is None or attention_mask is not None:
        raise ValueError("packed attention needs segments and no mask")
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    mixed = packed_attention(query, key, value, segments, causal=True, scale=scaling, dropout=dropout)
    return mixed[None], None


def register_packed_attention() -> None:
    """Make ``uniaudio_packed`` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(PACKED, packed_attention_for_transformers)
