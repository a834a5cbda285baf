"""A closed-form start of a fusion: every encoder standardised, and as little as possible lost of any of them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.fusion.encoder import CompositeEncoder
from uniaudio.model.fusion.feature_scale import fit_scale
from uniaudio.types import Batch

FRAMES = 50  # of a row at most, evenly spaced: neighbours say the same


@torch.no_grad()
def start_fusion(model: AudioLM, batches: Iterable[Batch], examples: int) -> None:
    """Standardise the streams that a fusion reads, and let it begin with their principal components.

    Features get mean 0 and variance 1 over the frames of some rows, of which every one counts the same. The fused
    frames begin as the projection of the concatenated streams to their first principal components: distances are then
    those of the concatenation, as far as the fused width allows.

    Args:
        batches: of one row each. examples: rows that are read.
    """
    encoder = model.encoder
    assert isinstance(encoder, CompositeEncoder)
    assert encoder.scales is not None
    scales: Any = encoder.scales
    was_training = model.training
    model.eval()
    read: list[list[list[Tensor]]] = [[[] for _ in states] for states in scales]
    shares = []
    for batch in islice(batches, examples):
        streams = encoder.encode_streams(batch.to(next(encoder.parameters()).device).audio)
        count = len(streams[0][0].values)
        chosen = torch.linspace(0, count - 1, min(count, FRAMES)).round().long()
        for kept, states in zip(read, streams, strict=True):
            for layer, state in zip(kept, states, strict=True):
                layer.append(state.values[chosen.to(state.device)].float())
        shares.append(torch.full((len(chosen),), 1 / len(chosen)))
    model.train(was_training)
    weights = (torch.cat(shares) / len(shares)).to(read[0][0][0].device)
    standardised = []
    for states, kept in zip(scales, read, strict=True):
        for scale, layer in zip(states, kept, strict=True):
            weight, bias = fit_scale(torch.cat(layer), weights)
            scale.weight.copy_(weight)
            scale.bias.copy_(bias)
        scaled = [scale(torch.cat(layer)) for scale, layer in zip(states, kept, strict=True)]
        standardised.append(torch.stack(scaled).mean(0))
    encoder.start_from_streams(standardised, weights)
