"""Several questions about one clip: a row that shares the beginning of another one, read once for both.

Only keys and values of the beginning are repeated, for the rows that share it. All the rest of a layer, which is most
of its work, sees each token once.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from uniaudio.ragged import Ragged
from uniaudio.types import SharedPrefixes


def row_positions(lengths: Int[Tensor, " B"], prefixes: SharedPrefixes | None) -> Int[Tensor, " T"]:
    """Return on the CPU where every token of packed rows stands: from 0, or from the end of the row's prefix."""
    starts = lengths.cumsum(0) - lengths
    if prefixes is not None:
        starts = starts - prefixes.lengths
    return torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)


def key_places(lengths: Int[Tensor, " B"], prefixes: SharedPrefixes) -> Ragged:
    """Return on the CPU the tokens that every row attends to: ``[S]`` places among the T tokens of all rows.

    With rows ``a b c d e`` and ``f``, of which the second shares three tokens of the first::

        places      0 1 2 3 4 | 0 1 2 5
    """
    starts = lengths.cumsum(0) - lengths
    parts = torch.stack([prefixes.lengths, lengths], 1)
    begins = torch.stack([starts[prefixes.leaders], starts], 1).flatten()
    flat = parts.flatten()
    shifts = begins - (flat.cumsum(0) - flat)
    places = torch.arange(int(flat.sum())) + torch.repeat_interleave(shifts, flat)
    return Ragged(places, parts.sum(1))
