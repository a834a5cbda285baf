"""Times as text between audio tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from uniaudio.model.adapters.base import Adapter
from uniaudio.model.depth_injection import widen_rows
from uniaudio.ragged import Ragged

CHARACTERS = "0123456789.s"  # what a marker is written with
ROUNDING = 1e-6  # of a frame or token, by which products of seconds may be off


class TimeMarkersAdapter(Adapter):
    """Audio tokens of another adapter, with ``0s``, ``2s``, ``4s`` ... as text tokens before the sound of that time.

    Every character is a token of the decoder, whose embeddings are kept as they were before training.

    Args:
        adapter: makes the audio tokens, in the order of time. frame_rate: frames per second of the encoder.
        every: seconds from one marker to the next.

    Attributes:
        table: ``[12, D]`` embeddings of ``CHARACTERS``, from ``fill_table``.
    """

    table: Tensor

    def __init__(self, adapter: Adapter, frame_rate: float, decoder_dim: int, every: float) -> None:
        super().__init__()
        self.adapter, self.frame_rate, self.every = adapter, frame_rate, every
        self.encoder_layers, self.decoder_layers = adapter.encoder_layers, adapter.decoder_layers
        self.register_buffer("table", torch.zeros(len(CHARACTERS), decoder_dim))

    @property
    def inner(self) -> Adapter:
        return self.adapter.inner

    def fill_table(self, embeddings: Tensor) -> None:
        """Keep the decoder's embeddings ``[12, D]`` of the characters."""
        self.table.copy_(embeddings)

    def list_markers(self, frames: int) -> list[tuple[int, str]]:
        """Return for a clip of so many frames the markers, each with the audio token before which it stands.

        That is the first token that begins at this time or later.
        """
        tokens, seconds = self.adapter.num_tokens(frames), frames / self.frame_rate
        has_fixed_number = self.adapter.num_tokens(0) == tokens  # spread over a clip of any length
        markers = []
        for number in range(int(seconds / self.every) + 1):
            time = number * self.every
            if has_fixed_number:
                place = math.ceil(time / seconds * tokens - ROUNDING)
            else:
                place = self.adapter.num_tokens(math.ceil(time * self.frame_rate - ROUNDING))
            if place < tokens:
                markers.append((place, f"{time:.6g}s"))
        return markers

    def num_tokens(self, frames: int) -> int:
        markers = self.list_markers(frames)
        return self.adapter.num_tokens(frames) + sum(len(text) for _, text in markers)

    def forward(self, frames: Ragged, layers: Sequence[Ragged] = ()) -> Ragged:
        """Map frames to audio tokens and markers in the order of time, ``[N, D]``, or wide as those of ``adapter``."""
        tokens = self.adapter(frames, layers) if layers else self.adapter(frames)
        size, first = len(CHARACTERS), len(CHARACTERS)
        index: list[int] = []
        lengths = []
        for count, clip in zip(tokens.lengths.tolist(), frames.lengths.tolist(), strict=True):
            before, begin = len(index), first
            for place, text in self.list_markers(clip):
                index += range(begin, first + place)
                index += [CHARACTERS.index(character) for character in text]
                begin = first + place
            index += range(begin, first + count)
            lengths.append(len(index) - before)
            first += count
        assert first == size + len(tokens.values)
        table = widen_rows(self.table.to(tokens.values.dtype), tokens.values.shape[1])
        order = torch.tensor(index, dtype=torch.int64).to(tokens.device, non_blocking=True)
        values = torch.cat([table, tokens.values]).index_select(0, order)
        return Ragged(values, torch.tensor(lengths, dtype=torch.int64))
