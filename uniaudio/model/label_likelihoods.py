"""The log-likelihood of every label of a closed set as the answer to every prompt of a batch.

A prompt is read once, whatever the number of labels: they stand behind it as branches. For a label of tokens ``y_1 ..
y_n``, the end of turn included, it is ``sum_j log p(y_j | prompt, y_1 .. y_(j-1))``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from uniaudio.model.depth_injection import widen_rows
from uniaudio.model.tree_attention import Branches
from uniaudio.ragged import Ragged

LOGITS = 2**24  # logits that exist at the same time: 64 MiB in float32
TOGETHER = 64  # labels that continue one cache at the same time


def label_log_likelihoods(
    decoder: Any,
    prefixes: Ragged,
    labels: Ragged,
    read: Callable[[Ragged, Branches], Tensor] | None,
) -> Float[Tensor, "B K"]:
    """Score K labels behind each of B prompts.

    Args:
        decoder: with ``embed`` and ``logits``; without ``read`` a ``TextDecoder``.
        prefixes: the decoder's input rows ``[T, D]`` of the prompts. labels: token ids, each ends with the end of turn.
        read: hidden states ``[T, D]`` of rows with branches. None, for layers that cannot: the labels continue the
            cache of the stock model.

    Returns:
        float32, or float64 where the decoder is.
    """
    device, count = prefixes.device, len(labels)
    ids, owner = labels.values.to(device), labels.row_index().to(device)
    starts, ends = labels.offsets[:-1], labels.offsets[1:] - 1
    every = torch.ones(len(ids), dtype=torch.bool)
    # places are found on the host: a mask on the device would wait for it
    later, given = (every.index_fill(0, x, False).nonzero().flatten().to(device) for x in (starts, ends))
    inputs = Ragged(decoder.embed(ids[given]), labels.lengths - 1)
    if read is not None:
        last, inside = read_branches(prefixes, inputs, read)
    else:
        last, inside = continue_cache(decoder, prefixes, inputs)
    first = gather_log_probabilities(decoder, last, ids[starts.to(device)].expand(len(last), count))
    following = ids[later].repeat(len(prefixes))[:, None]
    rest = gather_log_probabilities(decoder, inside, following).view(len(prefixes), -1)
    return first.index_add(1, owner[later], rest)


def read_branches(
    prefixes: Ragged, inputs: Ragged, read: Callable[[Ragged, Branches], Tensor]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "N D"]]:
    """Return the hidden state at the end of every prompt, and those of all labels behind each: N is B times theirs."""
    branches = Branches.of(prefixes.lengths, inputs.lengths, prefixes.device)
    labels = widen_rows(inputs.values.to(prefixes.values.dtype), prefixes.values.shape[1])
    parts = [part for row in prefixes.rows() for part in (row, labels)]
    with torch.compiler.set_stance("force_eager"):  # branches are loops of other sizes in every call
        hidden = read(Ragged(torch.cat(parts), branches.row_lengths), branches)
    ends = prefixes.lengths.cumsum(0) + torch.arange(len(prefixes)) * branches.inside
    inside = (ends[:, None] + torch.arange(branches.inside)).flatten()
    return hidden[(ends - 1).to(hidden.device)], hidden[inside.to(hidden.device)]


def continue_cache(
    decoder: Any, prefixes: Ragged, inputs: Ragged
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "N D"]]:
    """Return what ``read_branches`` returns, for any causal LM: the labels continue the cache of each prompt.

    A model whose memory is a state and no cache of keys reads the prompt anew with every label.
    """
    decoder.set_attention(decoder.stock_attention)
    lm, last, inside = decoder.lm, [], []
    stateful = getattr(lm, "_is_stateful", False)
    for row in prefixes.rows():
        cache = None if stateful else DynamicCache(config=lm.config.get_text_config())
        embeds = decoder.split_rows(row[None], once=True)
        read = lm.base_model(inputs_embeds=embeds, past_key_values=cache, use_cache=not stateful)
        last.append(read.last_hidden_state[0, -1])
        for first in range(0, len(inputs), TOGETHER):
            some = inputs.select(range(first, min(first + TOGETHER, len(inputs))))
            inside.append(
                read_whole_rows(decoder, row, some)
                if cache is None
                else read_after_cache(lm, cache, len(row), some)
            )
    return torch.stack(last), torch.cat(inside)


def read_after_cache(lm: Any, cache: DynamicCache, length: int, labels: Ragged) -> Tensor:
    """Return the hidden states of labels that continue a copy of a cache of so many tokens."""
    cache = copy.deepcopy(cache)  # the model writes into it
    cache.batch_repeat_interleave(len(labels))
    padded, _ = labels.pad()
    positions = torch.arange(length, length + padded.shape[1], device=padded.device)
    hidden = lm.base_model(
        inputs_embeds=padded,
        past_key_values=cache,
        position_ids=positions[None].expand(len(labels), -1),
        use_cache=True,
    ).last_hidden_state
    return Ragged.from_padded(hidden, labels.lengths).values


def read_whole_rows(decoder: Any, prefix: Tensor, labels: Ragged) -> Tensor:
    """Return the hidden states of labels, each read behind the whole prompt."""
    hidden = []
    for label in labels.rows():
        row = torch.cat([prefix, widen_rows(label, prefix.shape[1])])
        read = decoder.lm.base_model(inputs_embeds=decoder.split_rows(row[None], once=True), use_cache=False)
        hidden.append(read.last_hidden_state[0, len(prefix) :])
    return torch.cat(hidden)


def gather_log_probabilities(
    decoder: Any, hidden: Float[Tensor, "N D"], ids: Int[Tensor, "N J"]
) -> Float[Tensor, "N J"]:
    """Return the log-probabilities of some tokens after each hidden state, a part of the logits at a time."""
    parts = []
    chunk = max(1, LOGITS // decoder.vocabulary)
    for some, wanted in zip(hidden.split(chunk), ids.split(chunk), strict=True):
        logits = decoder.logits(some)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        chosen, highest = logits.gather(1, wanted), logits.amax(1, keepdim=True)
        # in place: a copy of this many logits costs more than the exponentials
        parts.append(chosen - highest - logits.sub_(highest).exp_().sum(1, keepdim=True).log())
    return torch.cat(parts)
