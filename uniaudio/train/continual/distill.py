"""Feature distillation: the frames of the encoder stay near those it gave when the stage began."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uniaudio.config.stages import DistillConfig
from uniaudio.ragged import Ragged
from uniaudio.types import Batch


class Distiller:
    """A frozen copy of the encoder that hears the current clips.

    Args:
        model: as it is when the stage begins. device: where the copy listens; default: where the encoder is.
        encoder: the copy; default: one is made.
    """

    def __init__(
        self,
        model: Any,
        settings: DistillConfig,
        device: torch.device | None = None,
        encoder: nn.Module | None = None,
    ) -> None:
        self.settings = settings
        encoder = copy.deepcopy(model.encoder) if encoder is None else encoder
        self.model = copy.copy(model)  # its parts are shared, but for the encoder
        self.model._modules = {
            **model._modules,
            "encoder": encoder.requires_grad_(False).eval().to(device),
        }

    @torch.no_grad()
    def frames(self, batch: Batch) -> Ragged:
        """Return the frames ``[A, E]`` that the encoder gave when the stage began."""
        takes_prompts = self.model.encoder.takes_prompts
        text = self.model.decoder.embed(batch.tokens.values) if takes_prompts else None
        frames: Ragged = self.model.encode(batch, text).frames
        return frames

    def compute_total(self, before: Ragged, now: Ragged) -> Tensor:
        """Return the weighted distance summed over the frames of a micro-batch, in float32.

        ``mse``: the squared distance of two frames, summed over features. ``cosine``: 1 minus their cosine.
        """
        old, new = before.values.float(), now.values.float()
        if self.settings.distance == "cosine":
            apart = 1 - F.cosine_similarity(new, old, dim=-1)
        else:
            apart = (new - old).square().sum(-1)
        return self.settings.weight * apart.sum()


def count_batch_frames(model: Any, batch: Batch) -> int:
    """Return the number of encoder frames of a batch, without encoding it."""
    return sum(model.encoder.num_frames(n) for n in batch.audio.lengths.tolist())
