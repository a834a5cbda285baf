"""Features of several encoder layers beside the audio tokens, for several layers of the decoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uniaudio.errors import UserError
from uniaudio.model.adapters.base import Adapter
from uniaudio.ragged import Ragged


class DepthAdapter(Adapter):
    """Audio tokens of another adapter, and one projection for each encoder layer (DeepStack, arXiv 2406.04334).

    Of a clip's n tokens, number j gets the mean of the hidden states in part j of n equal parts of the clip, after a
    LayerNorm and a linear map that begins at zero: so training begins with the model without depth.

    Args:
        adapter: makes the tokens. encoder_dims: widths of all hidden states of the encoder.
        encoder_layers: hidden states by their number, 0 is what the first layer reads.
        decoder_layers: the layers of the decoder behind which they are added, as many.

    Raises:
        UserError: when the encoder has no such layer.
    """

    def __init__(
        self,
        adapter: Adapter,
        encoder_dims: Sequence[int],
        decoder_dim: int,
        encoder_layers: Sequence[int],
        decoder_layers: Sequence[int],
    ) -> None:
        super().__init__()
        if wrong := [layer for layer in encoder_layers if layer >= len(encoder_dims)]:
            raise UserError(
                f"adapter.depth.encoder_layers: {wrong[0]}, but the encoder has hidden states 0 to "
                f"{len(encoder_dims) - 1}"
            )
        self.adapter = adapter
        self.encoder_layers, self.decoder_layers = tuple(encoder_layers), tuple(decoder_layers)
        self.projections = nn.ModuleList(
            LayerProjection(encoder_dims[layer], decoder_dim) for layer in encoder_layers
        )

    @property
    def inner(self) -> Adapter:
        return self.adapter.inner

    def num_tokens(self, frames: int) -> int:
        return self.adapter.num_tokens(frames)

    def forward(self, frames: Ragged, layers: Sequence[Ragged] = ()) -> Ragged:
        """Map frames ``[A, E]`` and K hidden states ``[A, E']`` to wide rows ``[N, (1 + K) * D]``."""
        tokens = self.adapter(frames)
        features = [
            projection(average_parts(state, tokens.lengths)).to(tokens.values.dtype)
            for projection, state in zip(self.projections, layers, strict=True)
        ]
        return tokens.with_values(torch.cat([tokens.values, *features], 1))


class LayerProjection(nn.Module):
    """LayerNorm and a linear map that begins at zero."""

    def __init__(self, encoder_dim: int, decoder_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(encoder_dim)
        self.out = nn.Linear(encoder_dim, decoder_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, states: Float[Tensor, "N E"]) -> Float[Tensor, "N D"]:
        """Map mean hidden states to what is added to the decoder's."""
        return self.out(self.norm(states))


def average_parts(frames: Ragged, tokens: Tensor) -> Float[Tensor, "N E"]:
    """Cut every clip's frames ``[A, E]`` into ``tokens[i]`` equal parts and return the mean of each.

    A part holds every frame that it touches, so each has one at least.
    """
    within = Ragged.count_within_rows(tokens)
    sizes, counts = (torch.repeat_interleave(each, tokens) for each in (frames.lengths, tokens))
    first = torch.div(within * sizes, counts, rounding_mode="floor")
    end = torch.div((within + 1) * sizes + counts - 1, counts, rounding_mode="floor")
    starts = torch.repeat_interleave(Ragged.find_row_starts(frames.lengths), tokens) + first
    index = Ragged.index_slices(starts, end - first).to(frames.device, non_blocking=True)
    return Ragged(frames.values[index], end - first).mean()
