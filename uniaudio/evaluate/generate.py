"""Greedy answers of a batch, equal to those of every prompt alone."""

from __future__ import annotations

import torch
from torch import Tensor

from uniaudio.data.tokens import ChatFormat
from uniaudio.model.audio_lm import AudioLM
from uniaudio.ragged import Ragged
from uniaudio.types import Batch


@torch.no_grad()
def generate(model: AudioLM, prompts: Batch, format: ChatFormat, max_new_tokens: int) -> list[str]:
    """Answer the prompts of a batch (from ``collate_prompts``) greedily; each row stops at its end of turn."""
    was_training = model.training
    model.eval()
    embeds, _ = model.embed_batch(prompts)
    rows = greedy(model, embeds, format, max_new_tokens)
    model.train(was_training)
    return [format.answer_text(row) for row in rows]


def left_padded(embeds: Ragged) -> tuple[Tensor, Tensor]:
    """Return ``[B, L, D]`` with the rows at the right edge, and the mask ``[B, L]`` of real positions."""
    longest = int(embeds.lengths.max())
    padded = embeds.values.new_zeros(len(embeds), longest, embeds.values.shape[1])
    mask = torch.zeros(len(embeds), longest, dtype=torch.long)
    for i, row in enumerate(embeds.rows()):
        padded[i, longest - len(row) :] = row
        mask[i, longest - len(row) :] = 1
    return padded, mask.to(embeds.device)


def greedy(model: AudioLM, embeds: Ragged, format: ChatFormat, max_new_tokens: int) -> list[list[int]]:
    """Let the stock model decode with its cache, and return the new ids of every row."""
    padded, mask = left_padded(embeds)
    new = model.decoder.lm.generate(
        inputs_embeds=padded,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        eos_token_id=format.end_of_turn,
        pad_token_id=format.pad,
    )
    return new.tolist()
