"""Encoders with spectrograms of their own: chunks of clips through the stock feature extractor and model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from uniaudio.model.activation_checkpointing import recompute_stock_layers
from uniaudio.model.encoders.base import AudioEncoder
from uniaudio.model.encoders.chunking import convert_to_float, cut_into_chunks, list_chunk_lengths
from uniaudio.ragged import Ragged
from uniaudio.types import SAMPLE_RATE


class ChunkedAudioEncoder(AudioEncoder):
    """Cuts clips into chunks, has a subclass encode them, and puts the frames together again.

    Features are computed on the CPU by the checkpoint's own extractor, so they are the stock ones.

    Args:
        model: the stock module. chunk: samples of the longest chunk. least: samples below which silence is added.
    """

    def __init__(self, model: nn.Module, chunk: int, least: int = 1) -> None:
        super().__init__()
        self.model: Any = model
        self.chunk, self.least = chunk, least
        self.reach = chunk / SAMPLE_RATE

    def can_recompute(self) -> bool:
        """Return whether the stock module has a switch for it."""
        return isinstance(self.model, PreTrainedModel) and self.model.supports_gradient_checkpointing

    def recompute(self) -> None:
        super().recompute()
        recompute_stock_layers(self.model)

    def count_frames(self, samples: int) -> int:
        """Return the frames of one chunk."""
        raise NotImplementedError

    def encode_chunks(self, waves: list[NDArray[np.float32]], layers: bool) -> list[list[Tensor]]:
        """Return the frames ``[count_frames(n), E]`` of every chunk, or more of them.

        With ``layers`` those of each hidden state, else of the last one alone.
        """
        raise NotImplementedError

    def num_frames(self, samples: int) -> int:
        return sum(self.count_frames(chunk) for chunk in list_chunk_lengths(samples, self.chunk))

    def encode_clips(self, audio: Ragged, layers: bool, masks: Tensor | None) -> list[Tensor]:
        chunks = cut_into_chunks(audio, self.chunk)
        samples = convert_to_float(chunks.values).cpu().numpy()
        waves = [
            np.pad(samples[begin : begin + length], (0, max(0, self.least - length)))
            for begin, length in zip(chunks.offsets.tolist(), chunks.lengths.tolist(), strict=False)
        ]
        kept = [self.count_frames(n) for n in chunks.lengths.tolist()]
        return [
            torch.cat([rows[:count] for rows, count in zip(state, kept, strict=True)])
            for state in self.encode_chunks(waves, layers)
        ]

    def move_to_device(self, features: Tensor) -> Tensor:
        """Bring features to the device of the weights, those of floating point to their dtype."""
        weight = next(self.model.parameters())
        return features.to(weight) if features.is_floating_point() else features.to(weight.device)
