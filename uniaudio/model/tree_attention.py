"""Several continuations of one row at once: each sees the row and itself, and the row is read once for all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

GROUP = 256  # queries that share one call of the kernel: its mask grows with their square


@dataclass(frozen=True)
class Branches:
    """The same K continuations behind each of B rows of a packed sequence, positions going on where the row ends.

    Row and branches lie one after another. With two branches ``d e`` and ``f`` of a row ``a b c``::

        tokens      a b c  d e  f
        positions   0 1 2  3 4  3
        f sees      a b c       f

    Args:
        prefixes: tokens of the B rows without their branches. lengths: tokens of the K branches.
        groups: (first, end, mask): queries ``first:end`` of the branches, and which of their own keys they see.
        positions: ``[T]`` int64 on the device, T over all rows with their branches.
    """

    prefixes: tuple[int, ...]
    lengths: tuple[int, ...]
    groups: tuple[tuple[int, int, Tensor], ...]
    positions: Tensor

    @classmethod
    def of(cls, prefixes: Tensor, lengths: Tensor, device: torch.device) -> Branches:
        """Build from the lengths of rows and branches (int64, on the CPU)."""
        inside = torch.cat([torch.arange(n) for n in lengths.tolist()])
        positions = torch.cat([part for n in prefixes.tolist() for part in (torch.arange(n), inside + n)])
        groups = tuple(
            (a, b, make_block_mask(lengths, a, b).to(device)) for a, b in group_by_length(lengths.tolist())
        )
        return cls(
            tuple(prefixes.tolist()),
            tuple(lengths.tolist()),
            groups,
            positions.to(device, non_blocking=True),
        )

    @property
    def inside(self) -> int:
        """Tokens of all branches of one row."""
        return sum(self.lengths)

    @property
    def row_lengths(self) -> Tensor:
        """``[B]`` int64 on the CPU: tokens of every row with its branches."""
        return torch.tensor(self.prefixes, dtype=torch.int64) + self.inside


def group_by_length(lengths: list[int]) -> list[tuple[int, int]]:
    """Cut the tokens of whole branches into groups of at most ``GROUP`` tokens (or one longer branch)."""
    groups: list[tuple[int, int]] = []
    start = end = 0
    for length in lengths:
        if end > start and end + length - start > GROUP:
            groups.append((start, end))
            start = end
        end += length
    return [*groups, (start, end)] if end > start else groups


def make_block_mask(lengths: Tensor, start: int, end: int) -> Tensor:
    """Return ``[q, q]`` bool: tokens ``start:end`` of the branches see those before them in the same branch."""
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)[start:end]
    return (owner[:, None] == owner[None]).tril()


def branched_attention(
    query: Float[Tensor, "T H d"],
    key: Float[Tensor, "T G d"],
    value: Float[Tensor, "T G d"],
    branches: Branches,
    scale: float | None = None,
) -> Float[Tensor, "T H d"]:
    """Attend causally within every row, and from every branch to its row and itself.

    ``G`` key heads serve ``H`` query heads (grouped-query when ``G < H``).
    """
    parts = []
    lengths = [prefix + branches.inside for prefix in branches.prefixes]
    rows = zip(branches.prefixes, query.split(lengths), key.split(lengths), value.split(lengths), strict=True)
    for prefix, q, k, v in rows:
        parts.append(attend_row(q[:prefix], k[:prefix], v[:prefix], causal=True, scale=scale))
        for first, end, mask in branches.groups:
            branch = slice(prefix + first, prefix + end)
            keys, values = (torch.cat([x[:prefix], x[branch]]) for x in (k, v))
            seen = F.pad(mask, (prefix, 0), value=True)
            parts.append(attend_row(q[branch], keys, values, seen, scale=scale))
    return torch.cat(parts)


def attend_row(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    causal: bool = False,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Call the kernel for one row, ``[q, H, d]`` and ``[s, G, d]``: under a mask, or causally, or with neither."""
    mixed = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        key.transpose(0, 1)[None],
        value.transpose(0, 1)[None],
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal,
        scale=scale,
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return mixed[0].transpose(0, 1)
