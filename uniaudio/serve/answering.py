"""One question to a loaded model: the answer, the probability of every label, and the spectrogram of the clip."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from uniaudio.build.model import LoadedModel
from uniaudio.data.collate import collate_prompts
from uniaudio.data.jinja import Wording
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.generation.generated_answers import answer_all, split_question
from uniaudio.evaluate.metrics.classification import compute_probabilities
from uniaudio.ragged import Ragged
from uniaudio.serve.limits import Limits, decode_upload, limit_time
from uniaudio.serve.spectrogram import draw_spectrogram
from uniaudio.serve.tasks import TrainedTask
from uniaudio.types import Example


@dataclass(frozen=True)
class Reply:
    """What the page shows.

    Args:
        answer: the generated text. labels: the probability of every label; empty without a closed set.
        spectrogram: of the clip.
    """

    answer: str
    labels: dict[str, float]
    spectrogram: Figure


def answer_upload(
    loaded: LoadedModel, data: bytes, question: str, task: TrainedTask | None, limits: Limits
) -> Reply:
    """Decode a clip and ask a model about it.

    Args:
        data: bytes of a sound file. question: text, in which ``<audio>`` may mark the clip's place.
        task: whose labels are compared, if it has any; its wordings may hold special tokens, as in training.

    Raises:
        UserError: when clip or question cannot be used, or the model takes longer than it may.
    """
    question = question.strip()
    if not question:
        raise UserError("the question is empty; type one or select a trained one")
    if len(question) > limits.max_characters:
        raise UserError(f"the question is longer than {limits.max_characters} characters; shorten it")
    pieces = cut_question(question, task)
    samples = decode_upload(data, limits)
    with limit_time(limits.timeout, loaded.model):
        (answer,) = answer_all(loaded.model, loaded.format, [samples], [pieces], limits.max_new_tokens)
        labels = score_labels(loaded, samples, pieces, task) if task and task.labels else {}
    return Reply(answer, labels, draw_spectrogram(samples))


def cut_question(question: str, task: TrainedTask | None) -> tuple[str, ...]:
    """Return a question cut at the place of its clip; a wording of the task keeps the special tokens of its template.

    Raises:
        UserError: when several places are marked.
    """
    pieces = split_question(question)
    wordings = task.wordings if task is not None else ()
    wording = next((each for each in wordings if each.strip() == question), None)
    if not isinstance(wording, Wording):
        return pieces
    tokens = list(wording.tokens)  # in the order of the text
    cut: list[str] = []
    for piece in pieces:
        end = 0
        within: list[str] = []
        while tokens and (place := piece.find(tokens[0], end)) >= 0:
            end = place + len(tokens[0])
            within.append(tokens.pop(0))
        cut.append(Wording(piece, tuple(within)) if within else piece)
    return tuple(cut)


def score_labels(
    loaded: LoadedModel, samples: NDArray[np.int16], pieces: tuple[str, ...], task: TrainedTask
) -> dict[str, float]:
    """Return the probability of every label of a closed set, as ``uniaudio eval`` computes it.

    Clip and question are read once; every label, end of turn included, stands behind them as a branch of its own.

    Raises:
        UserError: when the question or a label holds the text of a special token.
    """
    example = Example("question", "ask", "ask", (samples,), pieces, "-")
    try:
        prompt = collate_prompts([example], loaded.format, loaded.model.count_slots, ("ask",))
        answers = [torch.tensor(loaded.format.answer(label)) for label in task.labels]
    except RowError as problem:
        raise UserError(f"the question cannot be used: {problem}") from problem
    device = next(loaded.model.parameters()).device
    likelihoods = loaded.model.label_log_likelihoods(prompt.to(device), Ragged.from_rows(answers))
    lengths = [len(answer) for answer in answers]
    shares = compute_probabilities(likelihoods.double().cpu().numpy(), lengths, task.likelihood)
    return dict(zip(task.labels, shares[0].tolist(), strict=True))
