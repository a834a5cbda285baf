"""Synthetic clips: token sequences that look to a language model the way the audio tokens of a clip later will.

Speech arrives as a slow, stretched, interrupted version of its transcript: each word lasts several audio
tokens and pauses lie between. A miniature language model that is to be frozen learns here, on text alone, to
read such a thing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

NOISE = -1  # stands for a position whose embedding is drawn at random, a new one every time


def draw_fillers(count: int, blank: int, rng: random.Random) -> list[int]:
    """``count`` positions that mean nothing: the blank token, noise, or a mixture of both."""
    share = rng.choice((0.0, 0.3, 1.0))
    return [NOISE if rng.random() < share else blank for _ in range(count)]


LONGEST_CLIP = 64  # positions: 5 s of audio at 12.5 tokens a second; only a long answer has a longer clip


def stretch_tokens(answer: Sequence[int], blank: int, rng: random.Random) -> list[int]:
    """The tokens of an answer, each repeated 1 to 4 times, fillers between them and at both ends.

    Two equal tokens in a row always have a filler between them, so that the answer can be read off without
    doubt. Sometimes the whole is drawn out much further, as a short label is over a long clip, to about
    ``LONGEST_CLIP``; an answer that needs more is only repeated less.

    Args:
        answer: token ids, at least one.
        blank: the filler token.
        rng: the generator of the example.
    """
    repeats, gap = rng.choice(((1, 0), (2, 1), (3, 2), (4, 3)))
    while repeats > 1 and len(answer) * (repeats + gap) / 2 > LONGEST_CLIP:
        repeats, gap = repeats - 1, gap - 1
    drawn_out = len(answer) <= 3 and rng.random() < 0.4
    tokens: list[int] = []
    for index, token in enumerate(answer):
        if index and answer[index - 1] == token:
            tokens += draw_fillers(rng.randint(1, 1 + gap), blank, rng)
        elif index:
            tokens += draw_fillers(rng.randint(0, gap), blank, rng)
        tokens += [token] * (rng.randint(1, LONGEST_CLIP // 3) if drawn_out else rng.randint(1, repeats))
    edge = max(LONGEST_CLIP - len(tokens), 8) // 2 if rng.random() < 0.3 else 4
    return [
        *draw_fillers(rng.randint(0, edge), blank, rng),
        *tokens,
        *draw_fillers(rng.randint(0, edge), blank, rng),
    ]


def draw_silent_tokens(blank: int, rng: random.Random) -> list[int]:
    """A clip that says nothing, 1 to ``LONGEST_CLIP`` positions: the answer has to be guessed from the question."""
    return draw_fillers(rng.randint(1, rng.choice((8, LONGEST_CLIP))), blank, rng)
