"""An exported encoder as XARES-LLM (Interspeech 2026 Audio Encoder Capability Challenge) wants it: one class in a file.

The mask has a 1 for each real frame: ``num_frames`` of each clip's own samples, counted once. (Halving twice, as in a
published wrapper of Whisper, would keep the first half of each clip.)
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel


class UniaudioEncoder(torch.nn.Module):
    """Frozen; waveforms at 16 kHz and a mask of their samples to frames and a mask of the frames."""

    def __init__(self) -> None:
        super().__init__()
        folder = Path(__file__).resolve().parent / "encoder"
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval().requires_grad_(False)
        self.output_dim = self.model.config.hidden_size

    def train(self, mode: bool = True) -> UniaudioEncoder:
        """Stay in eval mode, whatever the suite's trainer asks for: the encoder is frozen."""
        return super().train(False)

    def forward(self, audio: Tensor, audio_attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode ``[B, S]`` with a mask ``[B, S]``, None for all real, to ``[B, A, E]`` and ``[B, A]`` int64."""
        output = self.model(torch.atleast_2d(audio), attention_mask=audio_attention_mask)
        return output.last_hidden_state, output.frame_mask.long()
