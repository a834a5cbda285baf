"""Greedy decoding: every prompt of a batch is continued as it would be alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from uniaudio.ragged import Ragged


def generate_rows(
    decoder: Any,
    text: Ragged,
    max_new_tokens: int,
    end_of_turn: int,
    pad: int,
    repetition_penalty: float = 1.0,
) -> list[list[int]]:
    """Continue prompts greedily with the cache of the stock model and return the new ids of every row.

    After a row's end of turn come ``pad`` ids. An answer ends where the decoder's positions do. Rows go one by one
    where that would come earlier for the rows beside a longer one, and in a decoder that does not see padding as such.

    Args:
        decoder: a ``TextDecoder``. text: its input rows ``[T, D]``.
        repetition_penalty: of tokens that the answer already holds (Keskar et al. 2019); 1 is none.
    """
    limit, longest = decoder.positions, int(text.lengths.max())
    is_too_long = limit is not None and longest + max_new_tokens > limit
    if not is_too_long and decoder.pads_exactly:
        return continue_rows(decoder, text, max_new_tokens, end_of_turn, pad, repetition_penalty)
    rows = []
    for i, length in enumerate(text.lengths.tolist()):
        room = max_new_tokens if limit is None else min(max_new_tokens, limit - length)
        row = text.select([i])
        if room > 0:
            rows += continue_rows(decoder, row, room, end_of_turn, pad, repetition_penalty)
        else:
            rows.append([])
    return rows


def continue_rows(
    decoder: Any, text: Ragged, max_new_tokens: int, end_of_turn: int, pad: int, repetition_penalty: float
) -> list[list[int]]:
    """Continue the decoder's input rows ``[T, D]`` together, see ``generate_rows``."""
    padded, mask = pad_left(text)
    new = decoder.generate(
        padded,
        mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end_of_turn,
        pad_token_id=pad,
        logits_processor=[partial(penalize_repetitions, repetition_penalty)]
        if repetition_penalty != 1.0
        else None,
    )
    return new.tolist()


def penalize_repetitions(penalty: float, ids: Tensor, logits: Tensor) -> Tensor:
    """Return logits ``[B, V]`` with those of the ids ``[B, T]`` of each answer so far divided by the penalty where they
    are positive, and multiplied where they are not (Keskar et al. 2019).

    The stock processor skips as many of them as the row's prompt has padding, which an answer does not hold.
    """
    seen = logits.gather(1, ids)
    return logits.scatter(1, ids, torch.where(seen > 0, seen / penalty, seen * penalty))


def pad_left(embeds: Ragged) -> tuple[Tensor, Tensor]:
    """Return ``[B, L, D]`` with the rows at the right edge, and the mask ``[B, L]`` of real positions."""
    real = [torch.ones(length, dtype=torch.int64) for length in embeds.lengths.tolist()]
    padded, mask = (pad_sequence(list(rows), True, padding_side="left") for rows in (embeds.rows(), real))
    return padded, mask.to(embeds.device)


def generate_with_cross_attention(
    decoder: Any,
    prompts: Ragged,
    cross: Ragged,
    max_new_tokens: int,
    end_of_turn: int,
    repetition_penalty: float = 1.0,
) -> list[list[int]]:
    """Continue prompts greedily; every step reads the rows anew, for answers are short.

    An answer ends where the decoder's positions do.

    Args:
        decoder: a ``WhisperTextDecoder``. prompts: token ids ``[T]``. cross: the frames that each prompt attends to.
        repetition_penalty: see ``generate_rows``.
    """
    rows = [row.tolist() for row in prompts.rows()]
    new: list[list[int]] = [[] for _ in rows]
    for _ in range(max_new_tokens):
        going = [
            i
            for i, ids in enumerate(new)
            if end_of_turn not in ids and len(rows[i]) + len(ids) <= decoder.positions
        ]
        if not going:
            break
        ids = [torch.tensor(rows[i] + new[i]) for i in going]
        text = Ragged.from_rows(ids).to(cross.device)
        text = text.with_values(decoder.embed(text.values))
        hidden = decoder.hidden(text, cross.select(going))
        logits = decoder.logits(hidden[(text.offsets[1:] - 1).to(hidden.device)])
        if repetition_penalty != 1.0:
            answers = torch.tensor([new[i] for i in going], dtype=torch.int64)  # all began with the same step
            logits = penalize_repetitions(repetition_penalty, answers.to(logits.device), logits)
        for i, token in zip(going, logits.argmax(-1).tolist(), strict=True):
            new[i].append(token)
    return new
