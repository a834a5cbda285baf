"""The frozen decoder, forward and backward to its input: packed rows against the stock ways.

    python benchmarks/bench_decoder.py [--quick] [--decoder 0.6B] [--out FILE.json]

A small Qwen3 under the full vocabulary; rows of audio tokens at 12.5 per second of the mix of clip lengths, prompt and
answer tokens. All sides have the same weights and rows, and must give the same loss.

padded, random rows   batches of eight, padded on the right to the longest, as a shuffled loader gives them
padded, sorted rows   the same after sorting by length: the best that padding can do
packed, block mask    all rows as one, the stock model told by its positions where rows begin: transformers builds a
                      mask over all pairs of tokens for SDPA
ours                  all rows as one, attention row by row

Case ``layers`` has the squares of the first half of the hidden states as its loss. Case ``layers and loss`` has the
cross-entropy of the answers: stock sides compute logits at every position, ours at answer tokens only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from measure import Benchmark, Run, Step, main, time_steps
from peer import IGNORED
from setting import MICRO_BATCH, clip_seconds
from sizes import Sizes
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Qwen3ForCausalLM

from uniaudio.model.decoder import TextDecoder
from uniaudio.ragged import Ragged

SIDES = ("padded, random rows", "padded, sorted rows", "packed, block mask", "ours")
LAYERS, LOSS = "layers", "layers and loss"
PROMPT = 20
CHUNK = 2048  # labelled rows of the head at a time, as a run has them


@dataclass(frozen=True)
class Rows:
    """Input rows of the decoder, each ``[T, D]`` with gradient wanted, and the ids of their answers at their ends."""

    embeds: list[Tensor]
    answers: list[Tensor]

    @property
    def labels(self) -> list[Tensor]:
        """For every row a label for every token, ``IGNORED`` before the answer."""
        pairs = zip(self.embeds, self.answers, strict=True)
        return [torch.cat([torch.full((len(e) - len(a),), IGNORED), a]) for e, a in pairs]

    @property
    def answer_tokens(self) -> int:
        return sum(len(answer) for answer in self.answers)

    @property
    def tokens(self) -> int:
        return sum(len(row) for row in self.embeds)


def rows_of(count: int, sizes: Sizes) -> Rows:
    """Return rows in random order, the same in every process."""
    width = sizes.widths[1]
    generator = torch.Generator().manual_seed(0)
    seconds = clip_seconds("mix", count)
    random.Random(0).shuffle(seconds)
    answers = [torch.randint(sizes.vocabulary, (max(3, int(3 * s)),), generator=generator) for s in seconds]
    lengths = [round(s * 12.5) + PROMPT + len(answer) for s, answer in zip(seconds, answers, strict=True)]
    return Rows([0.02 * torch.randn(length, width, generator=generator) for length in lengths], answers)


def figures(run: Run) -> dict[str, float]:
    """Time one side's step."""
    lm = run.sizes.new_decoder()
    rows = rows_of(4 if run.quick else 16, run.sizes)
    for row in rows.embeds:
        row.requires_grad_()
    with_loss = run.case == LOSS
    if run.side == "ours":
        one = ours(lm, rows, with_loss)
    elif run.side == "packed, block mask":
        one = block_mask(lm, rows, with_loss)
    else:
        one = padded(lm, rows, with_loss, in_order="sorted" in run.side)
    return {"clips": len(rows.embeds), "tokens": rows.tokens, **time_steps(clean(rows, one), run.steps)}


def clean(rows: Rows, one: Callable[[], float]) -> Step:
    """Forget gradients before every step."""

    def step() -> dict[str, float]:
        for row in rows.embeds:
            row.grad = None
        return {"loss": one()}

    return step


def energy(hidden: Tensor) -> Tensor:
    """Return a loss of hidden states: of half the channels, for all together are always 1 behind the last norm."""
    return hidden[..., : hidden.shape[-1] // 2].square().sum()


def padded(lm: Qwen3ForCausalLM, rows: Rows, with_loss: bool, in_order: bool) -> Callable[[], float]:
    """Batches of eight rows, padded on the right."""
    order = list(range(len(rows.embeds)))
    if in_order:
        order.sort(key=lambda i: len(rows.embeds[i]))
    batches = [order[start : start + MICRO_BATCH] for start in range(0, len(order), MICRO_BATCH)]

    def one() -> float:
        total = 0.0
        for members in batches:
            embeds = [rows.embeds[i] for i in members]
            mask = pad_sequence([torch.ones(len(row), dtype=torch.long) for row in embeds], batch_first=True)
            given = {"inputs_embeds": pad_sequence(embeds, batch_first=True), "attention_mask": mask}
            if with_loss:
                labels = pad_sequence(
                    [rows.labels[i] for i in members], batch_first=True, padding_value=IGNORED
                )
                loss = stock_loss(lm, rows, labels, **given)
            else:
                hidden = lm.model(**given, use_cache=False).last_hidden_state
                loss = energy(hidden[mask.bool()]) / rows.tokens
            loss.backward()
            total += loss.item()
        return total

    return one


def block_mask(lm: Qwen3ForCausalLM, rows: Rows, with_loss: bool) -> Callable[[], float]:
    """All rows as one through the stock model, which finds their borders in the positions."""
    positions = torch.cat([torch.arange(len(row)) for row in rows.embeds])[None]
    labels = torch.cat(rows.labels)[None]

    def one() -> float:
        given = {"inputs_embeds": torch.cat(rows.embeds)[None], "position_ids": positions}
        if with_loss:
            loss = stock_loss(lm, rows, labels, **given)
        else:
            hidden = lm.model(**given, use_cache=False).last_hidden_state
            loss = energy(hidden) / rows.tokens
        loss.backward()
        return loss.item()

    return one


def stock_loss(lm: Qwen3ForCausalLM, rows: Rows, labels: Tensor, **given: Tensor) -> Tensor:
    """Return the stock model's own loss with logits everywhere, divided by the answer tokens of the step."""
    return lm(**given, labels=labels, num_items_in_batch=rows.answer_tokens, use_cache=False).loss


def ours(lm: Qwen3ForCausalLM, rows: Rows, with_loss: bool) -> Callable[[], float]:
    """All rows as one through our attention, logits at answer tokens only."""
    decoder = TextDecoder(lm)
    lengths = [len(row) for row in rows.embeds]
    places = torch.cat(label_places(lengths, [len(answer) for answer in rows.answers]))
    labels = torch.cat(rows.answers)

    def one() -> float:
        hidden = decoder.packed_hidden(Ragged.from_rows(rows.embeds))
        if with_loss:
            loss = decoder.losses(hidden[places], labels, CHUNK)[0]
            loss = loss / rows.answer_tokens
        else:
            loss = energy(hidden) / rows.tokens
        loss.backward()
        return loss.item()

    return one


def label_places(lengths: Sequence[int], answers: Sequence[int]) -> list[Tensor]:
    """Return the positions in the packed rows whose hidden states predict the answers: one before each token."""
    places, start = [], 0
    for length, answer in zip(lengths, answers, strict=True):
        end = start + length
        places.append(torch.arange(end - answer - 1, end - 1))
        start = end
    return places


if __name__ == "__main__":
    main(
        Benchmark(
            name="decoder",
            title="Frozen decoder, forward and backward",
            cases={LAYERS: SIDES, LOSS: SIDES},
            figures=figures,
            same={LAYERS: SIDES, LOSS: SIDES},
        )
    )
