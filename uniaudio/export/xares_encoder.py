"""An exported encoder as X-ARES (arXiv 2505.16369) wants it: one class in one file, waveforms in, frames out.

X-ARES gives padded waveforms without lengths and averages over all frames, so frames of padding count there. It keeps
what it encoded under the name of the class, so the name holds a part of the hash of the weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel


class UniaudioEncoder(torch.nn.Module):
    """Frozen; ``forward`` maps ``[B, S]`` float at 16 kHz to frames ``[B, A, E]``, all of S taken as sound."""

    def __init__(self) -> None:
        super().__init__()
        folder = Path(__file__).resolve().parent / "encoder"
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval().requires_grad_(False)
        self.sampling_rate = self.model.config.sampling_rate
        self.output_dim = self.model.config.hidden_size
        self.hop_size_in_ms = 1000 / self.model.config.frame_rate

    def train(self, mode: bool = True) -> UniaudioEncoder:
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)

    def forward(self, audio: Tensor) -> Tensor:
        """Encode ``[B, S]``, or one clip ``[S]``."""
        return self.model(torch.atleast_2d(audio)).last_hidden_state
