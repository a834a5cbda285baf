"""An exported encoder with the common API of HEAR (arXiv 2203.03022): load, embed scenes, embed moments."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModel


class UniaudioEncoder(torch.nn.Module):
    """Frozen.

    Attributes:
        sample_rate: in Hz. scene_embedding_size, timestamp_embedding_size: width of an embedding.
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval().requires_grad_(False)
        self.sample_rate = self.model.config.sampling_rate
        self.scene_embedding_size = self.timestamp_embedding_size = self.model.config.hidden_size

    def train(self, mode: bool = True) -> UniaudioEncoder:
        """Stay in eval mode: the encoder is frozen."""
        return super().train(False)


def load_model(model_file_path: str = "") -> UniaudioEncoder:
    """Return the encoder of a folder, by default of the one beside this file."""
    return UniaudioEncoder(model_file_path or Path(__file__).resolve().parent / "encoder")


def get_timestamp_embeddings(audio: Tensor, model: UniaudioEncoder) -> tuple[Tensor, Tensor]:
    """Return frames ``[n_sounds, n_timestamps, size]`` of ``[n_sounds, n_samples]`` and the middle of each in ms."""
    frames = model.model(audio).last_hidden_state.float()
    middles = (torch.arange(frames.shape[1], device=frames.device) + 0.5) * (
        1000 / model.model.config.frame_rate
    )
    return frames, middles.expand(len(frames), -1)


def get_scene_embeddings(audio: Tensor, model: UniaudioEncoder) -> Tensor:
    """Return the mean frame ``[n_sounds, size]`` of each sound."""
    return model.model(audio).pooler_output
