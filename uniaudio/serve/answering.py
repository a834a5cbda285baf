"""One question to a loaded model: the answer, what it thinks of every label, and the picture of the clip."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from uniaudio.build.answering import answer_samples, split_question
from uniaudio.build.model import LoadedModel
from uniaudio.data.collate import collate_prompts
from uniaudio.errors import RowError, UserError
from uniaudio.evaluate.metrics.classification import probabilities
from uniaudio.ragged import Ragged
from uniaudio.serve.limits import Limits, decode_upload, within
from uniaudio.serve.picture import mel_picture
from uniaudio.serve.prompts import Offer
from uniaudio.types import SAMPLE_RATE, Example


@dataclass(frozen=True)
class Reply:
    """What the page shows.

    Args:
        answer: the generated text. labels: (label, probability), the likeliest first; empty without a closed set.
        seconds: length of the clip. took: seconds of work. mel: PNG of the log-mel spectrogram.
    """

    answer: str
    labels: tuple[tuple[str, float], ...]
    seconds: float
    took: float
    mel: bytes


def reply(loaded: LoadedModel, data: bytes, question: str, offer: Offer | None, limits: Limits) -> Reply:
    """Decode a clip and ask a model about it.

    Args:
        data: bytes of a sound file. question: text, in which ``<audio>`` may stand for the clip's place. offer: the
            task whose closed set of answers is compared; None compares nothing.

    Raises:
        UserError: when clip or question cannot be used. OutOfTimeError: when the model takes longer than it may.
    """
    question = question.strip()
    if not question:
        raise UserError("the question is empty; type one or pick one of the trained ones")
    if len(question) > limits.max_characters:
        raise UserError(f"the question is longer than {limits.max_characters} characters; shorten it")
    pieces = split_question(question)
    begun = time.monotonic()
    samples = decode_upload(data, limits)
    with within(limits.timeout, loaded.model):
        answer = answer_samples(loaded, samples, pieces, limits.max_new_tokens)
        scored = label_probabilities(loaded, samples, pieces, offer) if offer and offer.labels else {}
    ranked = sorted(scored.items(), key=lambda pair: -pair[1])
    return Reply(
        answer, tuple(ranked), len(samples) / SAMPLE_RATE, time.monotonic() - begun, mel_picture(samples)
    )


def label_probabilities(
    loaded: LoadedModel, samples: NDArray[np.int16], pieces: tuple[str, ...], offer: Offer
) -> dict[str, float]:
    """Return the probability of every label of a closed set, as ``uniaudio eval`` has it.

    Clip and question are read once; every label, end of turn included, stands behind them as a branch of its own.

    Raises:
        UserError: when the question or a label holds the text of a special token.
    """
    example = Example("question", "ask", "ask", (samples,), pieces, "-")
    try:
        prompt = collate_prompts([example], loaded.format, loaded.model.slots_for, ("ask",))
        ids = [torch.tensor(loaded.format.answer(label)) for label in offer.labels]
    except RowError as problem:
        raise UserError(f"the question cannot be asked: {problem}") from problem
    device = next(loaded.model.parameters()).device
    likelihoods = loaded.model.label_log_likelihoods(prompt.to(device), Ragged.from_rows(ids))
    chances = probabilities(likelihoods.double().cpu().numpy(), [len(own) for own in ids], offer.likelihood)
    return dict(zip(offer.labels, chances[0].tolist(), strict=True))
