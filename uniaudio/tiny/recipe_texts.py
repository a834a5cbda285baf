"""The texts of a recipe: what its templates say about its rows, read without touching any audio."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from uniaudio.data.prompt_tokens import check_text
from uniaudio.data.recipe import Recipe
from uniaudio.data.sources.base import Row
from uniaudio.errors import RowError

RENDERINGS = 3  # of a row: the prompt of evaluation, and those that are drawn


@dataclass(frozen=True)
class RecipeText:
    """One rendered question: the pieces around the audio marks, and the answer."""

    task: str
    pieces: tuple[str, ...]
    answer: str


def collect_recipe_texts(recipe: Recipe, limit: int = 2000) -> list[RecipeText]:
    """Render the rows of all train entries, up to ``limit`` rows each, several times for the several prompts.

    Only columns are read, no audio is decoded. The first rendering is the one of evaluation, the others draw
    prompts as training does. Rows that cannot be rendered are left out here; training counts and lists them.
    Equal texts are given once, in a stable order.
    """
    texts: dict[RecipeText, None] = {}
    recipe, sources = recipe.open_training_entries()
    for entry, source in zip(recipe.train, sources, strict=True):
        rng = random.Random(entry.name)
        usable = (row for row in source.rows() if isinstance(row, Row))
        for row in islice(usable, limit):
            for number in range(RENDERINGS):
                for template in entry.templates:
                    try:
                        rendered = entry.render_question(row, template, rng if number else None)
                        for text in (*rendered.prompt, rendered.answer):
                            check_text(text)
                    except RowError:
                        continue
                    texts.setdefault(RecipeText(template.task, rendered.prompt, rendered.answer))
    return list(texts)


def list_text_pieces(texts: Sequence[RecipeText]) -> list[str]:
    """Return the pieces of all questions, then all answers: what a tokenizer is trained on."""
    return [*(piece for text in texts for piece in text.pieces), *(text.answer for text in texts)]
