"""Rows that share the beginning of another one, read once for both: several questions about a clip, a system prompt.

Only keys and values of the beginning are repeated, for the rows that share it. All the rest of a layer, which is most
of its work, sees each token once.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from uniaudio.ragged import Ragged
from uniaudio.types import SharedPrefixes


def compute_row_positions(lengths: Int[Tensor, " B"], prefixes: SharedPrefixes | None) -> Int[Tensor, " T"]:
    """Return on the CPU where every token of packed rows stands: from 0, or from the end of the row's prefix."""
    starts = prefixes.lengths if prefixes is not None else torch.zeros_like(lengths)
    return Ragged.index_slices(starts, lengths)


def find_key_places(lengths: Int[Tensor, " B"], prefixes: SharedPrefixes) -> Ragged:
    """Return on the CPU the tokens that every row attends to: ``[S]`` places among the T tokens of all rows.

    With rows ``a b c d e`` and ``f``, of which the second shares three tokens of the first::

        places      0 1 2 3 4 | 0 1 2 5

    The row that holds the beginning may itself begin in an earlier, whole one.
    """
    starts, leaders = Ragged.find_row_starts(lengths), prefixes.leaders
    inherited = torch.minimum(prefixes.lengths, prefixes.lengths[leaders])
    parts = torch.stack([inherited, prefixes.lengths - inherited, lengths], 1)
    begins = torch.stack([starts[leaders[leaders]], starts[leaders], starts], 1).flatten()
    return Ragged(Ragged.index_slices(begins, parts.flatten()), parts.sum(1))
