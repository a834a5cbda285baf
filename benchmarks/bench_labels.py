"""Scoring 50 labels of a closed set: ours against generating an answer, and against one forward for every label.

    python benchmarks/bench_labels.py [--quick] [--out FILE.json]

All sides start from the decoder's input rows of the same prompts, so the encoder counts for none of them. ``generate``:
the stock model continues the prompts greedily with its cache, as many tokens as the longest label has, which says
nothing about the other labels. ``alone``: the stock model reads prompt and label anew for each of the 50 labels.
``ours``: the prompt once, all labels behind it. ``ours`` and ``alone`` give the same numbers.

Cases: ``miniature`` is the small decoder that runs without a download train (vocabulary 512), ``small`` has Qwen's
vocabulary of 151,936, where the head costs most. Each side runs in fresh processes, A B C A B C, and the fastest run
counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import machine
from rich.console import Console
from rich.table import Table
from setting import VOCABULARY, small_qwen
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from uniaudio.model.audio_lm import left_padded
from uniaudio.model.decoder import TextDecoder
from uniaudio.model.label_scores import label_log_likelihoods
from uniaudio.ragged import Ragged

SIDES = ("generate", "alone", "ours")
CASES = ("miniature", "small")
LABELS, PROMPTS = 50, 8
PROMPT_TOKENS = (76, 92)  # five seconds of audio at 12.5 Hz and a question
STEPS = 1  # timed ones in a process, after one to warm up: the slowest side takes half a minute each
AGREEMENT = 1e-3
END = 1  # the end of turn


def decoder_of(case: str) -> TextDecoder:
    """Return a decoder with random weights from one seed."""
    torch.manual_seed(0)
    if case == "small":
        return TextDecoder(small_qwen())
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
    padded, mask = left_padded(prompts)
    greedy: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    decoder.generate(padded, mask, max_new_tokens=tokens, eos_token_id=None, pad_token_id=0, **greedy)


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
def time_side(side: str, case: str, steps: int) -> dict[str, Any]:
    """Warm up once and return the fastest of so many steps, and the sum of the scores."""
    step = prepare(side, case)
    result = step()
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return {"seconds": min(seconds), "sum": None if result is None else float(result.double().sum())}


def compare(case: str, runs: int, threads: int, console: Console) -> dict[str, Any]:
    """Alternate the sides in fresh processes and return the fastest run of each, and how many times ours is faster."""
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for number in range(runs):
        for side in SIDES:
            command = [sys.executable, __file__, "--side", side, "--cases", case, "--threads", str(threads)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            rows[side].append(json.loads(done.stdout.splitlines()[-1]))
            console.print(
                f"{case}, run {number + 1}, {side}: {rows[side][-1]['seconds']:.3f} s", highlight=False
            )
    best = {side: min(row["seconds"] for row in own) for side, own in rows.items()}
    sums = {side: rows[side][0]["sum"] for side in ("alone", "ours")}
    return {
        "seconds": best,
        "runs": {side: [row["seconds"] for row in own] for side, own in rows.items()},
        "times_faster": {side: best[side] / best["ours"] for side in ("generate", "alone")},
        "difference": abs(sums["alone"] - sums["ours"]) / abs(sums["alone"]),
    }


def main() -> None:
    """Run the comparison, or with ``--side`` one side in this process."""
    parser = argparse.ArgumentParser(description="scoring of labels")
    parser.add_argument(
        "--quick", action="store_true", help="one run of the small case, to see that it works"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.side:
        print(json.dumps(time_side(arguments.side, arguments.cases[0], STEPS)))
        return
    cases, runs = (("miniature",), 1) if arguments.quick else (arguments.cases, arguments.runs)
    console = Console(width=max(110, Console().width))
    facts = {"labels": LABELS, "prompts": PROMPTS, "vocabulary": {"miniature": 512, "small": VOCABULARY}}
    result: dict[str, Any] = {"benchmark": "labels", "machine": machine(arguments.threads), **facts}
    result["cases"] = {case: compare(case, runs, arguments.threads, console) for case in cases}
    table = Table(title=f"{LABELS} labels for {PROMPTS} prompts, seconds", title_justify="left")
    for column in ("decoder", *SIDES, "faster than generate", "faster than alone"):
        table.add_column(column, justify="left" if column == "decoder" else "right")
    for case, row in result["cases"].items():
        seconds = [f"{row['seconds'][side]:.3f}" for side in SIDES]
        table.add_row(
            case, *seconds, *(f"{row['times_faster'][side]:.2f}x" for side in ("generate", "alone"))
        )
    console.print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    worst = max(row["difference"] for row in result["cases"].values())
    if worst > AGREEMENT:
        raise SystemExit(f"the scores differ by {worst:.2g} from those of one forward for every label")


if __name__ == "__main__":
    main()
