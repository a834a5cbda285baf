"""Training a small language model to read synthetic clips of tokens, with Muon (kellerjordan.github.io/posts/muon)."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR
from transformers import Qwen3ForCausalLM

from uniaudio.config.decoder import MiniatureConfig
from uniaudio.tiny.curriculum import Curriculum, TextExample

NOISE_LIMIT = 2.0  # of the spread of the embeddings, in training
CHECK_NOISE = 0.7  # in the final check

Progress = Callable[[str], None]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration, as published
ITERATIONS = 5
MOMENTUM = 0.95  # share of the old momentum


def orthogonalize(matrix: Tensor) -> Tensor:
    """Return a matrix with about the singular vectors of ``matrix`` and singular values near one (0.7 to 1.2).

    Args:
        matrix: ``[m, n]``, of the dtype that is computed in.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if is_tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + torch.addmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x.mT if is_tall else x


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov momentum whose update of a matrix ``[m, n]`` is made orthogonal.

    ``torch.optim.Muon`` computes in bfloat16, where a processor without instructions for it takes 20 to 50 times
    as long as in float32 (measured, matrices of 128 to 768 rows); this one keeps the dtype of the weights.

    Args:
        params: matrices. lr: learning rate of a square or wide matrix; a tall one takes ``sqrt(m / n)`` of it.
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices that have a gradient."""
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state: dict[str, Any] = self.state[matrix]
                momentum = state.setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonalize(matrix.grad.lerp(momentum, MOMENTUM))
                rate = group["lr"] * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
                matrix.add_(update, alpha=-rate)


@contextmanager
def use_one_thread() -> Iterator[None]:
    """Compute with one thread for a while.

    Models this small gain a fifth at most from a second thread, lose a factor of ten to it on a busy machine
    (measured), and give other last bits with another number of threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def embed_synthetic_clips(
    lm: Qwen3ForCausalLM,
    examples: Sequence[TextExample],
    generator: torch.Generator,
    noise_limit: float = NOISE_LIMIT,
) -> Tensor:
    """``[B, T, D]`` embeddings of the examples, padded at the right; clips are scaled and carry Gaussian noise.

    The adapter will never hit an embedding exactly, and in the beginning not at all. So that a step in the
    right direction pays from the start, synthetic clips are blurred: every position is moved by noise of up to
    ``NOISE_LIMIT`` times the spread of the embeddings, and the whole clip is made up to e times larger or
    smaller.
    """
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad([example.ids for example in examples], batch_first=True, padding_value=0)
    clip = pad([example.is_clip for example in examples], batch_first=True, padding_value=0.0)
    table = lm.get_input_embeddings()
    embedded = table(ids.clamp(min=0)) * (ids >= 0)[..., None]
    strength = noise_limit * torch.rand(len(examples), 1, generator=generator)
    strength = clip * torch.where(ids < 0, strength.clamp(min=1), strength)
    noise = torch.randn(embedded.shape, generator=generator) * table.weight.detach().std()
    scale = torch.exp(clip * (2 * torch.rand(len(examples), 1, generator=generator) - 1))
    return (embedded + noise * strength[..., None]) * scale[..., None]


def answer_losses(
    lm: Qwen3ForCausalLM, examples: Sequence[TextExample], embeds: Tensor
) -> tuple[Tensor, Tensor]:
    """``(losses [L], right [L])`` at the answer tokens, which are the last ones of every example.

    Rows are padded at the right, which causal attention never sees, so no mask is needed.
    """
    hidden = lm.model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    rows: list[int] = []
    columns: list[int] = []
    labels: list[Tensor] = []
    for row, example in enumerate(examples):
        length = len(example.ids)
        rows += [row] * example.answer
        columns += range(length - example.answer - 1, length - 1)
        labels.append(example.ids[length - example.answer :])
    logits = lm.lm_head(hidden[rows, columns])
    target = torch.cat(labels)
    return F.cross_entropy(logits, target, reduction="none"), logits.argmax(-1) == target


def build_optimizers(lm: Qwen3ForCausalLM, lr: float) -> list[torch.optim.Optimizer]:
    """Muon at ``10 * lr`` for the weight matrices, AdamW at ``lr`` for embeddings and norms.

    With AdamW alone copying from a clip does not form within the few hundred steps that we can wait for
    (measured: 10 % of plainly copied tokens right after 300 steps, 35 % after 150 with Muon).
    """
    embeddings = lm.get_input_embeddings().weight
    matrices = [p for p in lm.parameters() if p.dim() == 2 and p is not embeddings]
    others = [p for p in lm.parameters() if p.dim() != 2 or p is embeddings]
    return [
        Muon(matrices, lr=10 * lr),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def compute_learning_rate(step: int, steps: int) -> float:
    """Share of the peak: linear warm-up over the first 5 %, then linear down to 2 %."""
    warmup = max(1, steps // 20)
    return min((step + 1) / warmup, 0.02 + 0.98 * (1 - step / steps))


def fit(lm: Qwen3ForCausalLM, book: Curriculum, settings: MiniatureConfig, progress: Progress | None) -> None:
    """Train in place on freshly drawn examples, one optimizer step each ``settings.batch`` of them."""
    optimizers = build_optimizers(lm, settings.lr)
    generator = torch.Generator().manual_seed(settings.seed)
    rng = random.Random(settings.seed)
    started = time.monotonic()
    schedules = [
        LambdaLR(each, lambda step: compute_learning_rate(step, settings.steps)) for each in optimizers
    ]
    lm.train()
    for step, examples in enumerate(book.iterate_batches(rng, settings.batch, settings.steps)):
        losses, right = answer_losses(lm, examples, embed_synthetic_clips(lm, examples, generator))
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        if progress and (step % 100 == 99 or step + 1 == settings.steps):
            progress(
                f"text model: step {step + 1} of {settings.steps}, loss {losses.mean().item():.3f}, "
                f"answer tokens right {right.float().mean().item():.3f}, {time.monotonic() - started:.0f} s"
            )


@torch.no_grad()
def measure_reading_accuracy(lm: Qwen3ForCausalLM, examples: Sequence[TextExample]) -> float:
    """Share of the answer tokens that the model predicts right (given the ones before) from noisy synthetic clips."""
    lm.eval()
    generator = torch.Generator().manual_seed(0)
    right = []
    for start in range(0, len(examples), 32):
        part = examples[start : start + 32]
        embeds = embed_synthetic_clips(lm, part, generator, CHECK_NOISE)
        right.append(answer_losses(lm, part, embeds)[1])
    return torch.cat(right).float().mean().item()
