"""A closed-form start of an adapter: its tokens begin as estimates of the answers, in the decoder's own embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor, nn

from uniaudio.errors import UserError
from uniaudio.model.adapters.base import GroupingAdapter
from uniaudio.model.audio_lm import AudioLM
from uniaudio.model.fusion.encoder import fit_scale
from uniaudio.ragged import Ragged
from uniaudio.types import Batch

PENALTY = 0.1  # of the ridge regression, as a share of the mean square of a feature


@torch.no_grad()
def start_adapter(
    model: AudioLM,
    batches: Iterable[Batch],
    examples: int,
    encode_in_text: Callable[[Sequence[int]], list[int]],
) -> None:
    """Set the norm and the last layer of an adapter so that its tokens begin as estimates of the answers.

    A norm is made to standardise the features of the groups of frames. The last layer becomes the ridge regression from
    what it reads to the embeddings of the answers, whose tokens are spread evenly over those of the clip; every clip
    counts the same. Around this stands the mean of the decoder's embeddings, which says nothing.

    Args:
        batches: of one row each. examples: rows that are read.
        encode_in_text: ids of an answer to ids of the same text behind a blank, see ``ChatFormat.encode_in_text``.

    Raises:
        UserError: when the adapter is not trained from the first stage on.
    """
    adapter = model.adapter.inner
    assert isinstance(adapter, GroupingAdapter)
    if not all(parameter.requires_grad for parameter in adapter.parameters()):
        raise UserError(
            "adapter.start: ridge is for an adapter that is trained in the first stage; remove it "
            "from `stages[0].train`, or set adapter.start to random"
        )
    was_training = model.training
    model.eval()
    groups, targets, weights = [], [], []
    for batch in islice(batches, examples):
        moved = batch.to(next(adapter.parameters()).device)
        encoded = model.encode(moved, model.decoder.embed(moved.tokens.values))
        grouped = adapter.group_frames(encoded.frames)
        groups.append(grouped.values.float())
        targets.append(spread_answers(model, moved, grouped, encode_in_text))
        weights.append(torch.full((len(grouped.values),), 1 / len(grouped.values), device=grouped.device))
    model.train(was_training)
    frames, shares = torch.cat(groups), torch.cat(weights) / len(weights)
    if (norm := getattr(adapter, "norm", None)) is not None:
        standardise(norm, frames, shares)
    features = adapter.compute_features(frames.to(adapter.last.weight.dtype)).float()
    slope = solve_ridge(features, torch.cat(targets), shares)
    centre = model.decoder.lm.get_input_embeddings().weight.float().mean(0)
    adapter.last.weight.copy_(slope.T)
    if adapter.last.bias is not None:
        adapter.last.bias.copy_(centre - (shares @ features) @ slope)


def spread_answers(
    model: AudioLM, batch: Batch, tokens: Ragged, encode_in_text: Callable[[Sequence[int]], list[int]]
) -> Float[Tensor, "N D"]:
    """Return for every audio token of a row the embedding of the answer's token at its place, the mean over questions.

    Of an answer with ``L`` tokens before the end of turn, the ``j``-th of a clip's ``n`` audio tokens gets number
    ``floor(j L / n)``.
    """
    answers = Ragged(batch.labels.cpu(), batch.tokens.lengths - batch.prompt_lengths)
    within = Ragged.count_within_rows(tokens.lengths)
    sizes = torch.repeat_interleave(tokens.lengths, tokens.lengths)
    spread = []
    for answer in answers.rows():
        ids = torch.tensor(encode_in_text(answer[:-1].tolist()))
        spread.append(model.decoder.embed(ids[within * len(ids) // sizes].to(tokens.device)).float())
    return torch.stack(spread).mean(0)


@torch.no_grad()
def standardise(norm: nn.LayerNorm, frames: Float[Tensor, "N G"], shares: Float[Tensor, " N"]) -> None:
    """Let a LayerNorm give out features of mean 0 and variance 1 over some frames.

    Frames of pretrained encoders have much in common: without this, nearly all of a token says the same for any clip.
    """
    norm.reset_parameters()
    weight, bias = fit_scale(norm(frames.to(norm.weight.dtype)).float(), shares)
    norm.weight.copy_(weight)
    norm.bias.copy_(bias)


def solve_ridge(
    features: Float[Tensor, "N H"], targets: Float[Tensor, "N D"], shares: Float[Tensor, " N"]
) -> Float[Tensor, "H D"]:
    """Return the slope of the ridge regression of targets on features, both around their weighted means."""
    features, targets = features - shares @ features, targets - shares @ targets
    weighted = (features * shares[:, None]).T
    square = weighted @ features
    penalty = PENALTY * square.diagonal().mean()
    return torch.linalg.solve(
        square + penalty * torch.eye(len(square), device=square.device), weighted @ targets
    )
