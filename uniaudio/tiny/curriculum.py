"""What a miniature language model is taught: questions of a recipe with synthetic clips of tokens.

The clips look to a language model the way the audio tokens of a clip later will. Speech arrives as a slow, stretched,
interrupted version of its transcript: each word lasts several audio tokens and pauses lie between. A miniature language
model that is to be frozen learns here, on text alone, to read such a thing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.tiny.recipe_texts import RecipeText

LONGEST_ANSWER = 160  # tokens; of a longer answer only the end is taught
POOL = 8  # batches drawn and sorted by length together
LONG = 8  # words; an answer with more is a sentence and not a label
HELD_OUT = 128  # examples of each kind that are kept for the final check
NOISE = -1  # stands for a position whose embedding is drawn at random, a new one every time
LONGEST_CLIP = 64  # positions: 5 s of audio at 12.5 tokens a second; only a long answer has a longer clip


def draw_fillers(count: int, blank: int, rng: random.Random) -> list[int]:
    """``count`` positions that mean nothing: the blank token, noise, or a mixture of both."""
    share = rng.choice((0.0, 0.3, 1.0))
    return [NOISE if rng.random() < share else blank for _ in range(count)]


def stretch_tokens(answer: Sequence[int], blank: int, rng: random.Random) -> list[int]:
    """The tokens of an answer, each repeated 1 to 4 times, fillers between them and at both ends.

    Two equal tokens in a row always have a filler between them, so that the answer can be read off without
    doubt. Sometimes the whole is drawn out much further, as a short label is over a long clip, to about
    ``LONGEST_CLIP``; an answer that needs more is only repeated less.

    Args:
        answer: token ids, at least one. blank: the filler token.
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


@dataclass(frozen=True)
class TextExample:
    """One training sequence.

    Args:
        ids: ``[T]`` int64 token ids, ``NOISE`` where an embedding is drawn at random.
        is_clip: ``[T]`` float32, 1 at the positions that stand for audio.
        answer: how many of the last ids are the answer (its end-of-turn included).
    """

    ids: Tensor
    is_clip: Tensor
    answer: int


class Curriculum:
    """Draws examples without end.

    Half of them are questions and answers of the recipe, most with a clip of the answer and some with an empty
    one. Of long answers only parts are said, or the model would know them by heart and need no audio to
    complete them. The other half ask the same questions, but clip and answer are strings that the recipe does
    not hold: its words in another order, spans of the extra texts, or tokens drawn blindly. So the model
    learns to read the clip, whatever it says, instead of the few answers by heart.
    """

    def __init__(
        self, texts: Sequence[RecipeText], extra: Sequence[str], format: ChatFormat, seed: int = 0
    ) -> None:
        self.format = format
        self.by_task: dict[str, list[RecipeText]] = {}
        for text in texts:
            self.by_task.setdefault(text.task, []).append(text)
        self.tasks = sorted(self.by_task)
        sentences = [*(text.answer for text in texts), *extra]
        self.sentences = [sentence.split() for sentence in dict.fromkeys(sentences)]
        self.answers = {text.answer for text in texts}
        self.words = sorted({word for sentence in self.sentences for word in sentence})
        self.answer_words = sorted({word for text in texts for word in text.answer.split()})
        self.pieces = sorted(set(format.encode(" ".join(self.words))))  # as one text, but of any length
        rng = random.Random(f"held out {seed}")
        self.kept_words = {self.draw_shuffled_words(rng) for _ in range(HELD_OUT)} - self.answers

    def iterate_batches(self, rng: random.Random, size: int, steps: int) -> Iterator[list[TextExample]]:
        """``steps`` batches of ``size`` examples of similar length, so that little is padded.

        The first fifth of the steps are short strings of blindly drawn tokens, their clip the string itself;
        over the second fifth they give way to the real mixture. Copying forms in 200 steps on those, and not
        in 1000 without.
        """
        pool: list[list[TextExample]] = []
        for step in range(steps):
            if not pool:
                easy = min(1.0, 2 - 5 * step / steps)
                drawn = [self.draw(rng, easy) for _ in range(POOL * size)]
                drawn.sort(key=lambda example: len(example.ids))
                pool = [drawn[i : i + size] for i in range(0, len(drawn), size)]
                rng.shuffle(pool)
            yield pool.pop()

    def draw(self, rng: random.Random, easy: float = 0.0) -> TextExample:
        """One example: with probability ``easy`` a plain copy, else one of the mixture described above."""
        text = self.draw_question(rng)
        if rng.random() < easy:
            tokens = self.draw_blind_tokens(rng, 8)
            return self.draw_example(text.pieces, [*tokens, self.format.end_of_turn], tokens, rng, plain=True)
        kind = rng.random()
        long = len(text.answer.split()) > LONG
        if kind < 0.15 and not long:
            return self.draw_example(text.pieces, self.answer_ids(text.answer), None, rng)
        if kind < 0.5:
            answer = self.draw_span(rng, text.answer.split()) if long and rng.random() < 0.8 else text.answer
            return self.make_example(text.pieces, answer, rng)
        if kind < 0.8:
            return self.make_example(text.pieces, self.draw_unknown_words(rng), rng)
        tokens = self.draw_blind_tokens(rng, rng.choice((4, 16)))
        return self.draw_example(text.pieces, [*tokens, self.format.end_of_turn], tokens, rng)

    def list_held_out(self, kind: Literal["known", "unseen", "empty"]) -> list[TextExample]:
        """The examples of the final check; the strings of ``unseen`` were never drawn in training."""
        rng = random.Random(f"check {kind}")
        if kind == "unseen":
            return [
                self.make_example(self.draw_question(rng).pieces, words, rng)
                for words in sorted(self.kept_words)
            ]
        texts = [self.draw_question(rng) for _ in range(HELD_OUT)]
        if kind == "known":
            return [self.make_example(text.pieces, text.answer, rng) for text in texts]
        return [self.draw_example(text.pieces, self.answer_ids(text.answer), None, rng) for text in texts]

    def draw_question(self, rng: random.Random) -> RecipeText:
        """A text of the recipe, all tasks equally often."""
        return rng.choice(self.by_task[rng.choice(self.tasks)])

    def draw_shuffled_words(self, rng: random.Random) -> str:
        """1 to 8 words of the answers in any order."""
        return " ".join(rng.choice(self.answer_words) for _ in range(rng.randint(1, 8)))

    def draw_unknown_words(self, rng: random.Random) -> str:
        """Shuffled words or a span of a sentence, but none of the strings kept for the final check."""
        while True:
            shuffled = rng.random() < 0.6
            words = (
                self.draw_shuffled_words(rng) if shuffled else self.draw_span(rng, rng.choice(self.sentences))
            )
            if words not in self.kept_words:
                return words

    def draw_blind_tokens(self, rng: random.Random, most: int) -> list[int]:
        """1 to ``most`` ordinary token ids drawn blindly."""
        return [rng.choice(self.pieces) for _ in range(rng.randint(1, most))]

    def draw_span(self, rng: random.Random, sentence: Sequence[str]) -> str:
        """A run of 1 to 24 words of a sentence."""
        start = rng.randrange(len(sentence))
        return " ".join(sentence[start : start + rng.randint(1, 24)])

    def answer_ids(self, answer: str) -> list[int]:
        """Token ids with end-of-turn; an overlong answer loses its beginning."""
        return self.format.answer(answer)[-LONGEST_ANSWER:]

    def make_example(self, pieces: Sequence[str], answer: str, rng: random.Random) -> TextExample:
        """An example whose clip says the answer, half the time as if in the middle of speech (after a space)."""
        ids = self.answer_ids(answer)
        said = ids[:-1]
        if rng.random() < 0.5:
            said = self.answer_ids(" " + answer)[:-1]
        return self.draw_example(pieces, ids, said, rng)

    def draw_example(
        self,
        pieces: Sequence[str],
        answer: list[int],
        said: list[int] | None,
        rng: random.Random,
        plain: bool = False,
    ) -> TextExample:
        """Put chat markup, synthetic clips and answer together; of several clips one says something."""
        blank = self.format.pad
        prompt = self.format.encode_prompt(pieces)
        speaking = rng.randrange(len(prompt) - 1) if said else -1
        ids, is_clip = list(prompt[0]), [0.0] * len(prompt[0])
        for index, piece in enumerate(prompt[1:]):
            if said and index == speaking:
                audio = said if plain else stretch_tokens(said, blank, rng)
            elif said:
                audio = draw_fillers(rng.randint(1, 8), blank, rng)
            else:
                audio = draw_silent_tokens(blank, rng)
            ids += [*audio, *piece]
            is_clip += [0.0 if plain else 1.0] * len(audio) + [0.0] * len(piece)
        ids += answer
        is_clip += [0.0] * len(answer)
        return TextExample(torch.tensor(ids), torch.tensor(is_clip), len(answer))
