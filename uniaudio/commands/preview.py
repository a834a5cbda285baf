"""``uniaudio preview``: rendered examples as the model will see them, the supervised part coloured."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from rich.console import Console
from rich.text import Text
from transformers import AutoTokenizer

from uniaudio.build.recipe_of_run import OpenedRecipe, open_recipe
from uniaudio.console import make_console, print_warning
from uniaudio.data.chat_markup import TRANSCRIPT, ChatMarkup
from uniaudio.data.long_clips import list_piece_spans, list_training_pieces
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe_entries import Entry
from uniaudio.data.sources.base import IndexedSource, Row, Source
from uniaudio.data.template import Template
from uniaudio.errors import RowError, UserError, convert_to_user_error, escape_text
from uniaudio.hub_client import convert_hub_errors
from uniaudio.tiny.text_lm import make_small_format
from uniaudio.train.checkpoint.integrity import BASES

DEFAULT_DECODER = "Qwen/Qwen3-0.6B"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
CLOCK = "strftime_now"  # a chat template's function of the day
TRIES = 20  # rows of an entry that are tried for one example


def preview(
    recipe_name: str, number: int, decoder: str | None, seed: int, console: Console | None = None
) -> None:
    """Print ``number`` training examples of a recipe (or of the first stage of a run config or run).

    Raises:
        UserError: when a label mask would be empty or full, or no row of an entry can be used.
    """
    console = console or make_console()
    opened, format = open_recipe_and_format(recipe_name, decoder, console)
    recipe, sources = opened.recipe.open_training_entries()
    for n in range(number):
        index = random.Random(f"{seed}-entry-{n}").choices(
            range(len(sources)), recipe.compute_train_shares()
        )[0]
        title = f"{n + 1}. "
        show_row(console, title, recipe.train[index], sources[index], (seed, n), format, opened.longest_clip)


def show_row(
    console: Console,
    title: str,
    entry: Entry,
    source: Source,
    draw: tuple[int, int],
    format: ChatFormat,
    longest: float = math.inf,
) -> None:
    """Print the questions about one row of an entry; rows that cannot be used are named and skipped.

    Of a clip that is cropped or cut into windows, one piece is shown, as training would draw it.

    Args:
        draw: (seed, number) that decide which row and piece it is. longest: seconds of the longest clip of the run.

    Raises:
        UserError: when none of ``TRIES`` rows can be used.
    """
    last = "there are none"
    long_clips = entry.choose_long_clips(longest, entry.name)
    for row in islice(draw_rows(source, *draw), TRIES):
        try:
            if not isinstance(row, Row):
                raise row
            rng = random.Random(f"{draw[0]}-{draw[1]}")
            examples = tokenize_questions(row, entry, rng, format)
            piece, seconds = rng.choice(list_training_pieces(row, long_clips, longest, rng))
        except RowError as problem:
            key = row.key if isinstance(row, Row) else problem.key
            last = f"{entry.name}, row {escape_text(key)}: {problem}"
            print_warning(f"skipped: {last}", console)
            continue
        for template, (prompt, answer) in examples:
            task_note = f"  {template.task}" if len(entry.templates) > 1 else ""
            show(
                console,
                f"{title}{entry.name}{task_note}  row {escape_text(piece.key)}",
                prompt,
                answer,
                describe_clips(row, piece, seconds),
                format,
            )
        return
    raise UserError(f"{entry.name}: none of the rows tried can be used ({last})")


def describe_clips(row: Row, piece: Row, seconds: list[float]) -> list[tuple[float, str]]:
    """Return seconds and text of every clip of a row, or of a piece of it with its time in the clip."""
    spans = list_piece_spans(row, piece)
    return [
        (
            length,
            f"{length:.2f} s" if span is None else f"{length:.2f} s, from {span[0]:.2f} to {span[1]:.2f} s",
        )
        for length, span in zip(seconds, spans, strict=True)
    ]


def tokenize_questions(
    row: Row, entry: Entry, rng: random.Random, format: ChatFormat
) -> list[tuple[Template, tuple[list[list[int]], list[int]]]]:
    """Return the ids of each question about a row around its clips, and those of its answer.

    A question that cannot be used is left out, as in training.

    Raises:
        RowError: when none can be used.
    """
    questions, problems = [], []
    for template in entry.templates:
        try:
            rendered = entry.render_question(row, template, rng)
            format.check_question(rendered.prompt, rendered.answer)
            ids = format.encode_prompt(rendered.prompt), format.answer(rendered.answer)
            questions.append((template, ids))
        except RowError as problem:
            problems.append(problem)
    if not questions:
        raise problems[0]
    return questions


def open_recipe_and_format(
    name: str, decoder: str | None, console: Console
) -> tuple[OpenedRecipe, ChatFormat]:
    """Accept a recipe, a run config or a run; take the tokenizer that was asked for, or one trained on its texts."""
    opened = open_recipe(name)
    settings = opened.config.decoder if decoder is None and opened.config is not None else None
    chosen = decoder or find_decoder_folder(opened)
    revision = settings.revision if settings is not None else None
    tokenizer = None
    if chosen is not None and (decoder is not None or has_tokenizer(chosen, revision)):
        try:
            # without --decoder only what is on this machine: waiting for a network is no preview
            tokenizer = AutoTokenizer.from_pretrained(
                chosen,
                revision=revision or "main",
                local_files_only=decoder is None,
                trust_remote_code=False,
            )
        except Exception as problem:  # for a broken file, tokenizers raises no narrower one
            if decoder is not None:
                with convert_hub_errors(f"--decoder {decoder}: no tokenizer could be loaded", decoder):
                    raise problem
    if tokenizer is not None:
        markup = read_markup(opened.checkpoint) if decoder is None and opened.checkpoint is not None else None
        if markup is None and CLOCK in str(tokenizer.chat_template):
            now = "the chat template inserts today's date"
            print_warning(f"{now}; a run keeps the date of its start (preview RUN shows it)", console)
        start = TRANSCRIPT if settings is not None and settings.kind == "whisper" else None
        return opened, ChatFormat(tokenizer, start, markup=markup)
    reason = f", because that of {chosen} cannot be read on this machine" if chosen else ""
    small = f"token counts are those of a small tokenizer trained on this recipe's texts{reason}"
    print_warning(f"{small}; name another with --decoder", console)
    return opened, make_small_format(opened.recipe)


def has_tokenizer(path: str, revision: str | None) -> bool:
    """Return whether a folder, or what is in the cache of a Hub repository, has a tokenizer."""
    if Path(path).is_dir():
        return True
    cached = (try_to_load_from_cache(path, name, revision=revision) for name in TOKENIZER_FILES)
    return any(isinstance(file, str) for file in cached)


def read_markup(checkpoint: Path) -> ChatMarkup | None:
    """Return the prompt that a run kept in a checkpoint; None where it kept none.

    Raises:
        UserError: when the file cannot be read.
    """
    with convert_to_user_error(f"{checkpoint / BASES} cannot be read", "name another checkpoint"):
        return ChatMarkup.from_base(json.loads((checkpoint / BASES).read_text("utf-8")).get("decoder", {}))


def find_decoder_folder(opened: OpenedRecipe) -> str | None:
    """Return where the tokenizer of a recipe comes from; None for a miniature decoder that is not made yet."""
    if opened.config is None:
        return DEFAULT_DECODER
    if opened.config.decoder.miniature is None:
        return opened.config.decoder.folder
    return str(opened.checkpoint.parent.parent / "decoder") if opened.checkpoint is not None else None


def draw_rows(source: Source, seed: int, n: int) -> Iterator[Row | RowError]:
    """Yield rows drawn at random from an indexed source, or those of another from its n-th row on, then its first."""
    if isinstance(source, IndexedSource):
        rng = random.Random(f"{seed}-row-{n}")
        while True:
            yield source.read_row_or_error(rng.randrange(source.size))
    yield from chain(islice(source.rows(), n, None), source.rows())


def show(
    console: Console,
    title: str,
    prompt: list[list[int]],
    answer: list[int],
    clips: list[tuple[float, str]],
    format: ChatFormat,
) -> None:
    """Print one example; refuse a label mask that is empty or full.

    Args:
        clips: seconds of every clip, and what is written in its place.
    """
    prompt_tokens = sum(len(piece) for piece in prompt)
    if len(answer) < 2 or prompt_tokens == 0:
        raise UserError(f"{title}: the label mask is {'full' if prompt_tokens == 0 else 'empty'}")
    text = Text()
    for index, piece in enumerate(prompt):
        if index:
            text.append(f"<audio {clips[index - 1][1]}>", style="bold cyan")
        text.append(format.decode(piece), style="dim")
    text.append(format.decode(answer), style="bold green")
    console.print(Text(title, style="bold"))
    console.print(text)
    console.print(
        f"{sum(seconds for seconds, _ in clips):.2f} s of audio, {prompt_tokens} prompt tokens, "
        f"{len(answer)} supervised tokens (green)\n",
        style="italic",
    )
