"""The configuration of an exported encoder, as transformers reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PretrainedConfig


class UniaudioConfig(PretrainedConfig):
    """What an exported encoder is made of and where it is from.

    Args:
        encoder: the description from which its modules are made.
        hidden_size: width E of a frame. frame_rate: frames per second.
        hidden_sizes: width of every hidden state, the last one that of a frame; those of a fused encoder differ.
        reach: seconds of sound that one frame can see; longer clips are cut inside. None: all of the clip.
        sampling_rate: of the waveforms, in Hz.
        provenance: what it was trained on and how, in plain values.
    """

    model_type = "uniaudio"

    def __init__(
        self,
        encoder: dict[str, Any] | None = None,
        hidden_size: int = 0,
        frame_rate: float = 0.0,
        reach: float | None = None,
        sampling_rate: int = 16_000,
        provenance: dict[str, Any] | None = None,
        hidden_sizes: Sequence[int] = (),
        **kwargs: Any,
    ) -> None:
        self.encoder = encoder
        self.hidden_size = hidden_size
        self.frame_rate = frame_rate
        self.reach = reach
        self.sampling_rate = sampling_rate
        self.provenance = provenance or {}
        self.hidden_sizes = [*hidden_sizes]
        super().__init__(**kwargs)
