"""A closed-form start of a fusion: every encoder standardised, and as little as possible lost of any of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from uniaudio.config.fusion import PCA, WCCN, WHITENING
from uniaudio.errors import UserError
from uniaudio.model.attenuated_whitening import attenuate_components
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.fusion.encoder import CompositeEncoder, fit_scale
from uniaudio.ragged import Ragged
from uniaudio.types import Batch

Answer = tuple[int, ...]  # number of the task, then token ids

# added to the variance of every direction, as a share of the mean: with 0.03 nearest neighbours were as good, but
# linear probes of real encoders lost up to 25 points to directions in which the few clips happened not to differ
FLOOR = 1.0
FRAMES = 50  # of a row at most, evenly spaced: neighbours say the same


@torch.no_grad()
def start_fusion(model: AudioLM, batches: Iterable[Batch], examples: int, start: str = PCA) -> None:
    """Standardise the streams that a fusion reads, and let it begin with their principal components.

    Features get mean 0 and variance 1 over the frames of some rows, of which every one counts the same. The fused
    frames begin as the projection of the concatenated streams to their first principal components: distances are then
    those of the concatenation, as far as the fused width allows. By ``WHITENING``, the large components of every stream
    are made small first, and by ``WCCN`` what differs among clips with the same answer (within-class covariance
    normalisation, Hatch et al. 2006); the components are then those of the mean frames of clips.

    Args:
        batches: of one row each. examples: rows that are read. start: one of ``FITTED``.

    Raises:
        UserError: by ``WCCN``, where no two rows have the same answer.
    """
    encoder = model.encoder
    assert isinstance(encoder, CompositeEncoder)
    assert encoder.scales is not None
    scales: Any = encoder.scales
    was_training = model.training
    model.eval()
    read: list[list[list[Tensor]]] = [[[] for _ in states] for states in scales]
    shares, answers = [], []
    for batch in islice(batches, examples):
        streams = encoder.encode_streams(batch.to(next(encoder.parameters()).device).audio)
        count = len(streams[0][0].values)
        chosen = torch.linspace(0, count - 1, min(count, FRAMES)).round().long()
        for kept, states in zip(read, streams, strict=True):
            for layer, state in zip(kept, states, strict=True):
                layer.append(state.values[chosen.to(state.device)].float())
        shares.append(torch.full((len(chosen),), 1 / len(chosen)))
        if start == WCCN:
            answers.append(list_answers(batch))
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
    whitening = None
    if start != PCA:
        # components of clips: once whitened, most of what varies within a clip says nothing of it
        lengths = torch.tensor([len(share) for share in shares])
        standardised = [Ragged(frames, lengths).mean() for frames in standardised]
        weights = weights.new_full((len(shares),), 1 / len(shares))
    if start == WHITENING:
        whitening = torch.block_diag(*map(attenuate_components, standardised))
    elif start == WCCN:
        whitening = whiten_answers(torch.cat(standardised, 1), answers)
    encoder.start_from_streams(standardised, weights, whitening)


def list_answers(batch: Batch) -> list[Answer]:
    """Return the answers to all questions of a row, each with its task."""
    ids = Ragged(batch.labels.cpu(), batch.tokens.lengths - batch.prompt_lengths).rows()
    return [(task, *row.tolist()) for task, row in zip(batch.example_task.tolist(), ids, strict=True)]


def whiten_answers(clips: Float[Tensor, "C E"], answers: Sequence[Sequence[Answer]]) -> Float[Tensor, "E E"]:
    """Return the symmetric map after which clips of the same answer differ alike in all directions.

    Args:
        clips: mean frames. answers: of each clip; those that occur once do not count.

    Raises:
        UserError: when no two clips have the same answer.
    """
    members: dict[Answer, list[int]] = {}
    for clip, given in enumerate(answers):
        for answer in given:
            members.setdefault(answer, []).append(clip)
    groups = [clips[rows].double() for rows in members.values() if len(rows) > 1]
    if not groups:
        raise UserError(
            f"fusion.start: {WCCN} compares clips with the same answer, but {len(answers)} rows of "
            "the first recipe contain no such clips; raise start_examples, or use pca"
        )
    apart = torch.cat([group - group.mean(0) for group in groups])
    within = apart.T @ apart / (len(apart) - len(groups))
    values, vectors = torch.linalg.eigh(within)
    # few clips say nothing of most directions, which are not blown up
    factors = (values.clamp(min=0) + FLOOR * values.mean()).rsqrt()
    return ((vectors * factors) @ vectors.T).to(clips.dtype)
