"""Ask a model a recipe's evaluation sets and score what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from rich.table import Table

from uniaudio.data.asked import iterate_examples
from uniaudio.data.batch import collate, collate_prompts
from uniaudio.data.cursor import Skip
from uniaudio.data.recipe import EvalEntry
from uniaudio.data.tokens import ChatFormat
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.embed import length_batches
from uniaudio.evaluate.generate import generate
from uniaudio.evaluate.metrics import is_right, score
from uniaudio.model.audio_lm import AudioLM
from uniaudio.types import SAMPLE_RATE, Example

Asked = tuple[Example, tuple[str, ...]]  # a question, and the answers that are right


def usable_examples(
    entry: EvalEntry, format: ChatFormat, max_examples: int, max_seconds: float = 600.0
) -> tuple[list[Asked], list[Skip]]:
    """Read the questions of an evaluation set, and what was left out with reasons.

    Raises:
        UserError: when no row can be used.
    """
    limit = min(entry.max_examples or max_examples, max_examples)
    usable, skips = [], []
    for item in iterate_examples(entry, limit, max_seconds):
        if isinstance(item, Skip):
            skips.append(item)
            continue
        try:
            for text in (*item[0].prompt, item[0].answer):
                format.checked(text)
            usable.append(item)
        except RowError as problem:
            skips.append(Skip(entry.dataset.name, item[0].id, problem.reason, problem.detail))
    if not usable:
        raise UserError(f"{entry.name}: no row of split '{entry.split}' can be used ({skips[0].reason})")
    return usable, skips


def batches_of(usable: Sequence[Asked], batch_seconds: float) -> list[list[int]]:
    """Return the indices of questions in batches of similar length."""
    seconds = [sum(map(len, example.clips)) / SAMPLE_RATE + 1.0 for example, _ in usable]
    return length_batches(seconds, batch_seconds)


@torch.no_grad()
def answer_loss(
    model: AudioLM, format: ChatFormat, entry: EvalEntry, max_examples: int, batch_seconds: float
) -> tuple[float, int]:
    """Return the summed loss of the true answers of an evaluation set, and their tokens."""
    usable, _ = usable_examples(entry, format, max_examples)
    device = next(model.parameters()).device
    total, tokens = 0.0, 0
    for indices in batches_of(usable, batch_seconds):
        examples = [usable[i][0] for i in indices]
        loss = model(collate(examples, format, model.slots_for, (entry.template.task,)).to(device))
        total, tokens = total + float(loss.total), tokens + loss.answer_tokens
    return total, tokens


@torch.no_grad()
def evaluate_entry(
    model: AudioLM,
    format: ChatFormat,
    entry: EvalEntry,
    max_examples: int,
    max_new_tokens: int,
    batch_seconds: float,
    max_seconds: float = 600.0,
) -> dict[str, Any]:
    """Ask one evaluation set and return its figures and every answer.

    Returns:
        ``task``, ``metric``, ``score``, ``right`` (share of exactly right answers), ``loss`` (per answer token, of the
        true answer), ``examples``, ``skipped`` (rows with reasons), ``answers``.

    Raises:
        UserError: when no row can be used.
    """
    device = next(model.parameters()).device
    usable, skips = usable_examples(entry, format, max_examples, max_seconds)
    answers = [""] * len(usable)
    loss_sum, tokens = 0.0, 0
    model.eval()
    for indices in batches_of(usable, batch_seconds):
        examples = [usable[i][0] for i in indices]
        task = (entry.template.task,)
        prompts = collate_prompts(examples, format, model.slots_for, task).to(device)
        for index, answer in zip(indices, generate(model, prompts, format, max_new_tokens), strict=True):
            answers[index] = answer
        loss = model(collate(examples, format, model.slots_for, task).to(device))
        loss_sum, tokens = loss_sum + float(loss.total), tokens + loss.answer_tokens
    scoring = entry.template.scoring
    references = [truth for _, truth in usable]
    told = [
        {"id": example.id, "reference": truth[0], "answer": answer, "right": is_right(answer, truth, scoring)}
        for (example, truth), answer in zip(usable, answers, strict=True)
    ]
    return {
        "task": entry.template.task,
        "metric": scoring.metric,
        "score": score(answers, references, scoring),
        "right": sum(bool(item["right"]) for item in told) / len(told),
        "loss": loss_sum / tokens,
        "examples": len(told),
        "skipped": [asdict(skip) for skip in skips],
        "answers": told,
    }


def answers_table(results: dict[str, dict[str, Any]]) -> Table:
    """Lay out the figures of several evaluation sets."""
    table = Table(title="answers", title_justify="left")
    for column in ("set", "metric", "score", "all right", "loss", "examples", "skipped"):
        left = column in ("set", "metric")
        table.add_column(column, justify="left" if left else "right", overflow="fold")
    for name, result in results.items():
        table.add_row(
            name,
            result["metric"],
            f"{result['score']:.3f}",
            f"{result['right']:.1%}",
            f"{result['loss']:.3f}",
            str(result["examples"]),
            str(len(result["skipped"])),
        )
    return table
