"""``uniaudio preview``: rendered examples as the model will see them, the supervised part coloured."""

from __future__ import annotations

import random
from pathlib import Path

from rich.console import Console
from rich.text import Text
from transformers import AutoTokenizer

from uniaudio.config.files import find_file
from uniaudio.config.run import load_run
from uniaudio.config.strict_yaml import load_yaml
from uniaudio.data.cursor import first_rows
from uniaudio.data.recipe import Recipe, load_recipe
from uniaudio.data.source import IndexedSource, Row, Source, open_source
from uniaudio.data.tokens import ChatFormat
from uniaudio.errors import RowError, UserError
from uniaudio.miniature.texts import recipe_texts
from uniaudio.miniature.tokenizer import train_tokenizer

DEFAULT_DECODER = "Qwen/Qwen3-0.6B"
SMALL_VOCABULARY = 512


def preview(
    recipe_name: str, number: int, decoder: str | None, seed: int, console: Console | None = None
) -> None:
    """Print ``number`` training examples of a recipe (or of a run config's first stage).

    Raises:
        UserError: when a label mask would be empty or full, or an example cannot be rendered.
    """
    console = console or Console()
    recipe, format = recipe_and_format(recipe_name, decoder, console)
    sources = [open_source(entry.dataset, entry.split) for entry in recipe.train]
    for n in range(number):
        index = random.Random(f"{seed}-entry-{n}").choices(range(len(sources)), recipe.train_shares())[0]
        entry = recipe.train[index]
        row = some_row(sources[index], n, seed)
        rng = random.Random(f"{seed}-{n}")
        for template in entry.templates:
            fields = {**entry.dataset.fields(row.columns), **entry.constants}
            try:
                rendered = template.render(fields, rng)
                seconds = [ref.known_seconds() for ref in row.audio]
                prompt, answer = format.prompt(rendered.prompt), format.answer(rendered.answer)
            except RowError as problem:
                raise UserError(f"{entry.name}, row {row.key}: {problem}") from problem
            asked = f"  {template.task}" if len(entry.templates) > 1 else ""
            title = f"{n + 1}. {entry.name}{asked}  row {row.key}"
            show(console, title, prompt, answer, seconds, format)


def recipe_and_format(name: str, decoder: str | None, console: Console) -> tuple[Recipe, ChatFormat]:
    """Accept a recipe or a run config; take the tokenizer that was asked for, or one trained on the recipe's texts."""
    recipe, chosen = open_recipe(name)
    chosen = decoder or chosen
    if chosen is not None:
        try:
            # without --decoder only what is on this machine: waiting for a network is no preview
            return recipe, ChatFormat(AutoTokenizer.from_pretrained(chosen, local_files_only=decoder is None))
        except (OSError, ValueError) as problem:
            if decoder is not None:
                raise UserError(f"--decoder {decoder}: no tokenizer could be loaded ({problem})") from problem
    texts = recipe_texts(recipe, limit=200)
    words = [*(piece for text in texts for piece in text.pieces), *(text.answer for text in texts)]
    console.print(
        f"[yellow]token counts are those of a small tokenizer trained on this recipe's texts"
        f"{f', because {chosen} is not on this machine' if chosen else ''}; name another with --decoder[/yellow]"
    )
    return recipe, ChatFormat(train_tokenizer(words, SMALL_VOCABULARY))


def open_recipe(name: str) -> tuple[Recipe, str | None]:
    """Return the recipe and the decoder its tokenizer comes from (None: a miniature one)."""
    path = Path(name)
    if path.is_file() and "stages" in load_yaml(path):
        config = load_run(name, [])
        recipe = load_recipe(config.stages[0].recipe, near=config.folder)
        return recipe, None if config.decoder.miniature else config.decoder.path
    return load_recipe(str(find_file("recipe", name))), DEFAULT_DECODER


def some_row(source: Source, n: int, seed: int) -> Row:
    """Return a row drawn at random from an indexed source, or one of the first rows of another."""
    if isinstance(source, IndexedSource):
        return source.row(random.Random(f"{seed}-row-{n}").randrange(source.size))
    rows = first_rows(source.rows(), n + 1)
    if not rows:
        raise UserError("none of the first rows of a streamed dataset can be used; see `uniaudio check`")
    return rows[-1]


def show(
    console: Console,
    title: str,
    prompt: list[list[int]],
    answer: list[int],
    seconds: list[float],
    format: ChatFormat,
) -> None:
    """Print one example; refuse a label mask that is empty or full."""
    prompt_tokens = sum(len(piece) for piece in prompt)
    if len(answer) < 2 or prompt_tokens == 0:
        raise UserError(f"{title}: the label mask is {'full' if prompt_tokens == 0 else 'empty'}")
    text = Text()
    for index, piece in enumerate(prompt):
        if index:
            text.append(f"<audio {seconds[index - 1]:.2f} s>", style="bold cyan")
        text.append(format.decode(piece), style="dim")
    text.append(format.decode(answer), style="bold green")
    console.print(Text(title, style="bold"))
    console.print(text)
    console.print(
        f"{sum(seconds):.2f} s of audio, {prompt_tokens} prompt tokens, "
        f"{len(answer)} supervised tokens (green)\n",
        style="italic",
    )
