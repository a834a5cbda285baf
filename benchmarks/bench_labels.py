"""Scoring 50 labels of a closed set: ours against generating an answer, and against one forward for every label.

    python benchmarks/bench_labels.py [--quick] [--cases CASE ...] [--out FILE.json]

All sides start from the decoder's input rows of the same prompts, so the encoder counts for none of them. ``generate``:
the stock model continues the prompts greedily with its cache, as many tokens as the longest label has, which says
nothing about the other labels. ``alone``: the stock model reads prompt and label anew for each of the 50 labels.
``ours``: the prompt once, all labels behind it. ``ours`` and ``alone`` give the same numbers.

Cases: ``miniature`` is the small decoder that runs without a download train (vocabulary 512), ``small`` has Qwen's
vocabulary of 151,936, where the head costs most.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import Benchmark, Run, main, time_steps
from sizes import Sizes
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from uniaudio.model.decoder import TextDecoder
from uniaudio.model.decoding import pad_left
from uniaudio.model.label_likelihoods import label_log_likelihoods
from uniaudio.ragged import Ragged

SIDES = ("generate", "alone", "ours")
CASES = ("miniature", "small")
LABELS, PROMPTS = 50, 8
PROMPT_TOKENS = (76, 92)  # five seconds of audio at 12.5 Hz and a question
END = 1  # the end of turn


def decoder_of(case: str) -> TextDecoder:
    """Return a decoder with random weights from one seed."""
    torch.manual_seed(0)
    if case == "small":
        return TextDecoder(Sizes().new_decoder())
    config = Qwen3Config(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=512,
        tie_word_embeddings=True,
        eos_token_id=None,
        bos_token_id=None,
    )
    return TextDecoder(Qwen3ForCausalLM(config))


def labels_of(vocabulary: int) -> Ragged:
    """Return labels of one to four tokens and the end of turn, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(1, 5, (LABELS,), generator=generator)
    rows = [torch.randint(2, vocabulary, (int(n),), generator=generator) for n in lengths]
    return Ragged.from_rows([torch.cat([row, row.new_tensor([END])]) for row in rows])


def prompts_of(width: int) -> Ragged:
    """Return the decoder's input rows of the prompts."""
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(*PROMPT_TOKENS, (PROMPTS,), generator=generator)
    return Ragged(torch.randn(int(lengths.sum()), width, generator=generator) * 0.02, lengths)


def prepare(side: str, case: str) -> Callable[[], Tensor | None]:
    """Return what a side does to all prompts; sides that score return ``[PROMPTS, LABELS]``."""
    decoder = decoder_of(case)
    labels, prompts = labels_of(decoder.vocabulary), prompts_of(decoder.dim)
    if side == "ours":
        return lambda: label_log_likelihoods(decoder, prompts, labels, decoder.packed_hidden)
    if side == "generate":
        return lambda: generate(decoder, prompts, int(labels.lengths.max()))
    return lambda: torch.stack([alone(decoder, row, labels) for row in prompts.rows()])


def generate(decoder: TextDecoder, prompts: Ragged, tokens: int) -> None:
    """Continue the prompts by so many tokens."""
    padded, mask = pad_left(prompts)
    decoder.generate(padded, mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)


def alone(decoder: TextDecoder, prompt: Tensor, labels: Ragged) -> Tensor:
    """Score every label behind one prompt: the stock model over prompt and label, all labels in one padded batch."""
    decoder.set_attention(decoder.stock_attention)
    given = Ragged.from_rows([torch.cat([prompt, decoder.embed(row[:-1])]) for row in labels.rows()])
    padded, mask = given.pad()
    hidden = decoder.lm.base_model(inputs_embeds=padded, attention_mask=mask.long(), use_cache=False)
    scores = []
    for row, states in zip(labels.rows(), hidden.last_hidden_state, strict=True):
        logits = decoder.logits(states[len(prompt) - 1 : len(prompt) - 1 + len(row)]).float()
        scores.append((logits.gather(1, row[:, None])[:, 0] - logits.logsumexp(1)).sum())
    return torch.stack(scores)


@torch.no_grad()
def figures(run: Run) -> dict[str, float]:
    """Time one side; the score is the mean over prompts and labels."""
    score = prepare(run.side, run.case)

    def step() -> dict[str, float]:
        result = score()
        return {} if result is None else {"score": float(result.double().mean())}

    return time_steps(step, run.steps)


if __name__ == "__main__":
    main(
        Benchmark(
            name="labels",
            title=f"{LABELS} labels for {PROMPTS} prompts",
            cases=dict.fromkeys(CASES, SIDES),
            figures=figures,
            same=dict.fromkeys(CASES, ("alone", "ours")),
            same_figure="score",
            quick_cases=CASES[:1],
            steps=(1, 1),  # the slowest side takes half a minute each
        )
    )
