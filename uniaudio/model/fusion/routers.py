"""Which weak encoder hears a clip: the same for all, by its sound, by frame, or by the question as well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uniaudio.model.float32 import Float32Linear, raise_to_float32
from uniaudio.ragged import Ragged


class IndependentRouter(nn.Module):
    """``r = softmax(theta)``: learned, the same for every clip."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(count))

    def forward(self) -> Tensor:
        """Return the weights ``[M]``."""
        return raise_to_float32(self.theta).softmax(0)


class DependentRouter(nn.Module):
    """``r(x) = softmax(W pool(z_base(x)) + b)``; pool is the mean over the clip's frames, or with ``per_frame``
    nothing.

    With ``prompt_dim`` the mean embedding of the question's tokens is projected and joined to the pooled frames (the
    idea of prompt-aware mixture, arXiv 2502.15178, whose own gate equation is not public to us). Without a question, as
    in probes, zeros stand in its place.
    """

    def __init__(self, dim: int, count: int, per_frame: bool = False, prompt_dim: int | None = None) -> None:
        super().__init__()
        self.per_frame = per_frame
        self.read_prompt = None if prompt_dim is None else nn.Linear(prompt_dim, dim, bias=False)
        self.weigh = Float32Linear(dim if prompt_dim is None else 2 * dim, count)

    def read(self, frames: Ragged) -> Tensor:
        """Return what is routed by: ``[C, E]``, or the frames themselves ``[A, E]``."""
        if self.per_frame:
            return frames.values
        return frames.with_values(raise_to_float32(frames.values)).mean()

    def forward(self, read: Tensor, owner: Tensor | None = None, prompts: Tensor | None = None) -> Tensor:
        """Return the weights of every row of ``read``: ``[rows, M]``.

        Args:
            owner: ``[rows]`` the clip of every row, where rows are frames. prompts: ``[C, P]``.
        """
        if self.read_prompt is not None:
            if prompts is None:
                question = read.new_zeros(read.shape)
            else:
                question = self.read_prompt(prompts.to(self.read_prompt.weight.dtype))
                question = question if owner is None else question[owner]
            read = torch.cat([read, question.to(read.dtype)], -1)
        return self.weigh(read).softmax(-1)


def smooth_weights(weights: Tensor, keep: float, epsilon: float) -> Tensor:
    """Return ``keep r + (1 - keep) epsilon`` (MoWE: 0.9 r + 0.1 epsilon, epsilon = 0.1 / M as printed)."""
    return keep * weights + (1 - keep) * epsilon
