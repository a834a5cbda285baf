"""Rows of different length side by side without padding: the one currency between the parts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """``values [N, ...]`` holds B rows one after another; ``lengths [B]`` (int64, always on the CPU) cuts them.

    Lengths stay on the CPU so that slicing, counting and kernel launches never wait for the device.

    Raises:
        ValueError: when the lengths are not a 1-D int64 CPU tensor, or do not add up to ``N``.
    """

    values: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        if self.lengths.dtype != torch.int64 or self.lengths.dim() != 1 or self.lengths.device.type != "cpu":
            raise ValueError("lengths must be a 1-D int64 tensor on the CPU")
        if int(self.lengths.sum()) != self.values.shape[0]:
            raise ValueError(
                f"lengths add up to {int(self.lengths.sum())} but there are {self.values.shape[0]} values"
            )

    @classmethod
    def from_rows(cls, rows: Sequence[Tensor]) -> Ragged:
        """Concatenate B tensors ``[n_i, ...]`` of one dtype and trailing shape. B must be at least 1."""
        return cls(torch.cat(list(rows)), torch.tensor([len(row) for row in rows], dtype=torch.int64))

    def __len__(self) -> int:
        """B, the number of rows."""
        return len(self.lengths)

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def offsets(self) -> Tensor:
        """``[B + 1]`` int64 on the CPU: row ``i`` is ``values[offsets[i]:offsets[i + 1]]``."""
        return torch.cat([self.lengths.new_zeros(1), self.lengths.cumsum(0)])

    @staticmethod
    def find_row_starts(lengths: Tensor) -> Tensor:
        """``[B]`` int64: where rows of such lengths ``[B]`` begin when they lie one after another."""
        return lengths.cumsum(0) - lengths

    @staticmethod
    def index_slices(starts: Tensor, lengths: Tensor) -> Tensor:
        """``[N]`` int64: the indices ``starts[i] ... starts[i] + lengths[i] - 1`` of B slices, one after another.

        Args:
            starts, lengths: ``[B]`` int64 on the CPU; N is the sum of the lengths.
        """
        shifts = starts - Ragged.find_row_starts(lengths)
        return torch.arange(int(lengths.sum())) + torch.repeat_interleave(shifts, lengths)

    @staticmethod
    def count_within_rows(lengths: Tensor) -> Tensor:
        """``[N]`` int64: 0, 1, 2 ... in every row of such lengths ``[B]``, the rows one after another."""
        return Ragged.index_slices(torch.zeros_like(lengths), lengths)

    def rows(self) -> tuple[Tensor, ...]:
        """The B rows as views ``[n_i, ...]``."""
        return self.values.split(self.lengths.tolist())

    def map_lengths(self, count: Callable[[int], int]) -> Tensor:
        """``[B]`` int64 on the CPU: what a function makes of the length of every row."""
        return torch.tensor([count(length) for length in self.lengths.tolist()], dtype=torch.int64)

    def with_values(self, values: Tensor) -> Ragged:
        """The same cutting over other values ``[N, ...]``."""
        return Ragged(values, self.lengths)

    def with_lengths(self, lengths: Tensor) -> Ragged:
        """The same values cut in another way, for example 30 s chunks put together to clips again."""
        return Ragged(self.values, lengths)

    def select(self, rows: Tensor | Sequence[int]) -> Ragged:
        """The given rows (indices on the CPU) in the given order."""
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        lengths = self.lengths[chosen]
        index = self.index_slices(self.offsets[:-1][chosen], lengths)
        return Ragged(self.values[index.to(self.device, non_blocking=True)], lengths)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Ragged:
        """Move the values; lengths stay on the CPU."""
        return Ragged(self.values.to(device, non_blocking=non_blocking), self.lengths)

    def extend_rows(self, lengths: Tensor) -> Ragged:
        """The rows with zeros behind them up to new lengths ``[B]`` (int64 on the CPU), none shorter than its row."""
        if torch.equal(self.lengths, lengths):
            return self
        place = self.index_slices(self.find_row_starts(lengths), self.lengths)
        buffer = self.values.new_zeros(int(lengths.sum()), *self.values.shape[1:])
        return Ragged(buffer.index_copy(0, place.to(self.device, non_blocking=True), self.values), lengths)

    def row_index(self) -> Tensor:
        """``[N]`` int64 on the device of the values: the row that each value belongs to."""
        index = torch.repeat_interleave(
            torch.arange(len(self)), self.lengths, output_size=self.values.shape[0]
        )
        return index.to(self.device, non_blocking=True)

    def pad(self, value: float = 0) -> tuple[Tensor, Tensor]:
        """``([B, L, ...], mask [B, L])`` with L the longest row; ``mask`` is True on real values."""
        padded = torch.nn.utils.rnn.pad_sequence(list(self.rows()), batch_first=True, padding_value=value)
        mask = torch.arange(padded.shape[1])[None] < self.lengths[:, None]
        return padded, mask.to(self.device, non_blocking=True)

    @classmethod
    def from_padded(cls, padded: Tensor, lengths: Tensor) -> Ragged:
        """The first ``lengths[i]`` entries of every row of ``padded [B, L, ...]``."""
        mask = torch.arange(padded.shape[1])[None] < lengths[:, None]
        places = mask.flatten().nonzero().flatten()  # on the host: a mask on the device would wait for it
        return cls(padded.flatten(0, 1)[places.to(padded.device, non_blocking=True)], lengths)

    def mean(self) -> Tensor:
        """``[B, ...]``: the mean of every row over its real values only, of their floating dtype. Empty rows give 0."""
        # a sum of many values in bfloat16 stalls
        values = self.values.to(torch.promote_types(self.values.dtype, torch.float32))
        sums = values.new_zeros((len(self), *values.shape[1:])).index_add(0, self.row_index(), values)
        counts = self.lengths.clamp(min=1).to(self.device, sums.dtype)
        return (sums / counts.view(-1, *[1] * (sums.dim() - 1))).to(self.values.dtype)
