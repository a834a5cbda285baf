"""Attention over packed rows: every row attends to itself only, and no mask is ever built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.torch_version import TorchVersion
from transformers import AttentionInterface

from uniaudio.model.tree_attention import Branches, attend_row, branched_attention
from uniaudio.ragged import Ragged

PACKED = "uniaudio_packed"  # the name in transformers' AttentionInterface
# whether the call of the kernel takes fewer key heads than query heads
GROUPED = TorchVersion(torch.__version__) >= "2.13"


@dataclass  # not frozen: torch 2.11 would compile anew for the lengths of every frozen one
class Segments:
    """Where the rows of a packed sequence begin and end.

    Args:
        lengths: tokens of every row, on the host. cu_seqlens: ``[B + 1]`` int32 on the device. longest: of lengths.
        branches: what of every row are continuations that do not see each other, where there are any.
        keys: where rows attend to more tokens than their own: the places ``[S]`` of all of them on the device, and
            how many belong to each row.
        log_counts: ``[S]`` logarithm of how many tokens each of these keys stands for, where any stands for several.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    longest: int
    branches: Branches | None = None
    keys: tuple[Tensor, Segments] | None = None
    log_counts: Tensor | None = None

    @classmethod
    def of(
        cls,
        lengths: Tensor | Sequence[int],
        device: torch.device,
        branches: Branches | None = None,
        keys: Ragged | None = None,
        log_counts: Tensor | None = None,
    ) -> Segments:
        """Build from row lengths (a CPU tensor or a list); rows of length 0 are allowed.

        Args:
            keys: places of the tokens that every row attends to, on the CPU. log_counts: of these keys, on the CPU.
        """
        counts = tuple(int(n) for n in lengths)
        offsets = torch.tensor((0, *counts), dtype=torch.int32).cumsum(0, dtype=torch.int32)
        seen = None
        if keys is not None:
            seen = (keys.values.to(device, non_blocking=True), cls.of(keys.lengths, device))
        if log_counts is not None:
            log_counts = log_counts.to(device, non_blocking=True)
        offsets = offsets.to(device, non_blocking=True)
        return cls(counts, offsets, max(counts, default=0), branches, seen, log_counts)

    def select_keys(
        self, key: Float[Tensor, "T G d"], value: Float[Tensor, "T G d"]
    ) -> tuple[Float[Tensor, "S G d"], Float[Tensor, "S G d"], Segments]:
        """Return keys and values that the rows attend to, and where those of each row lie."""
        if self.keys is None:
            return key, value, self
        places, keys = self.keys
        return key.index_select(0, places), value.index_select(0, places), keys


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

    With ``key_segments`` queries of a segment attend to the keys of the segment of the same number, of another length;
    where it is causal, the last query stands at the last key.

    On CUDA in bf16 or fp16 one call of torch's variable-length kernel does it; elsewhere one
    ``scaled_dot_product_attention`` per segment. The kernel knows no dropout, so dropout takes the second way too.
    Segments with branches attend as ``branched_attention`` says where it is causal.
    """
    if causal and segments.branches is not None:
        return branched_attention(query, key, value, segments.branches, scale)
    keys = key_segments or segments
    if takes_kernel(query, dropout):
        return variable_length_attention(query, key, value, segments, keys, causal, scale)
    return attention_by_segment(query, key, value, segments, keys, causal, scale, dropout)


def project_heads(
    attention: Any, hidden: Tensor, source: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries of ``hidden [..., E]``, keys and values of ``source``, by the projections of a stock layer.

    Args:
        source: what is attended to; None: ``hidden``.

    Returns:
        ``[..., H, d]``, and ``[..., G, d]`` twice.
    """
    source = hidden if source is None else source
    ways = ((attention.q_proj, hidden), (attention.k_proj, source), (attention.v_proj, source))
    query, key, value = (
        projection(rows).unflatten(-1, (-1, attention.head_dim)) for projection, rows in ways
    )
    return query, key, value


def weigh_keys(
    query: Float[Tensor, "T H d"],
    key: Float[Tensor, "S G d"],
    value: Float[Tensor, "S G d"],
    log_counts: Float[Tensor, " S"],
    scale: float,
) -> tuple[Float[Tensor, "T H D"], Float[Tensor, "S G D"], Float[Tensor, "S G D"]]:
    """Let every key count as often as it stands for a token: its logarithm is added to the key's logits.

    The kernels take no such term, so one more channel of queries (1) and keys (the term over ``scale``) carries it;
    there are 8 more channels, because kernels want multiples of 8. The first ``d`` channels of the result count.
    """
    ones = F.pad(query.new_ones(*query.shape[:2], 1), (0, 7))
    terms = (log_counts / scale).to(key.dtype)[:, None, None].expand(-1, key.shape[1], 1)
    return torch.cat([query, ones], -1), torch.cat([key, F.pad(terms, (0, 7))], -1), F.pad(value, (0, 8))


def takes_kernel(query: Float[Tensor, "T H d"], dropout: float) -> bool:
    """Return whether torch's variable-length kernel can do it."""
    return query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and dropout == 0.0


@torch.compiler.disable(reason="it loops over segments, whose number and lengths change with every batch")
def attention_by_segment(
    query: Float[Tensor, "T H d"],
    key: Float[Tensor, "S G d"],
    value: Float[Tensor, "S G d"],
    segments: Segments,
    keys: Segments,
    causal: bool,
    scale: float | None,
    dropout: float,
) -> Float[Tensor, "T H d"]:
    """Call ``scaled_dot_product_attention`` for one segment after the other."""
    parts = []
    rows = (query.split(segments.lengths), key.split(keys.lengths), value.split(keys.lengths))
    for q, k, v in zip(*rows, strict=True):
        mask = None
        if causal and len(q) != len(k):  # the kernel would put the first query at the first key
            mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
        parts.append(attend_row(q, k, v, mask, causal and mask is None, scale, dropout))
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

    grouped: dict[str, Any] = {}
    if key.shape[1] != query.shape[1] and GROUPED:
        grouped = {"enable_gqa": True}
    elif key.shape[1] != query.shape[1]:
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
        **grouped,
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
    key, value, keys = segments.select_keys(key, value)
    mixed = packed_attention(
        query, key, value, segments, causal=True, scale=scaling, dropout=dropout, key_segments=keys
    )
    return mixed[None], None


def register_packed_attention() -> None:
    """Make ``uniaudio_packed`` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(PACKED, packed_attention_for_transformers)
