"""A decoder against the rows of a run, without its weights: its class, vocabulary, prompts and positions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import PretrainedConfig, PreTrainedModel, WhisperConfig

from uniaudio.build.model import load_tokenizer, read_decoder_config
from uniaudio.checks.first_rows import ROWS_READ
from uniaudio.config.run import RunConfig
from uniaudio.data.chat_markup import TRANSCRIPT
from uniaudio.data.eval_examples import LONGEST_CLIP
from uniaudio.data.long_clips import list_training_pieces
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import Entry, EvalEntry, RecipeEntry, open_entry
from uniaudio.data.sources.base import Row
from uniaudio.errors import RowError, UserError
from uniaudio.model.decoder_limits import build_on_meta, find_position_limit
from uniaudio.model.depth_injection import find_stock_layers, refuse_missing_layers


@dataclass(frozen=True)
class SketchedDecoder:
    """A decoder as its folder describes it.

    Args:
        format: None for one of the Hub, whose tokenizer is fetched when the run starts.
        layer_parameters: numbers in its layers, embeddings and head left out; None for Whisper's own decoder.
    """

    config: PretrainedConfig
    format: ChatFormat | None
    layer_parameters: int | None = None


def sketch_decoder(config: RunConfig) -> SketchedDecoder | None:
    """Read configuration and, where it is local, tokenizer of a decoder and try what can be tried without weights.

    Returns:
        None for a miniature decoder and for one whose code is not trusted, which are looked at when the run starts.

    Raises:
        UserError: when training with it would end for what is known here.
    """
    settings = config.decoder
    if settings.miniature is not None:
        return None
    if settings.trust_remote_code and not config.trust.remote_code:
        return None
    architecture = read_decoder_config(config)
    whisper = settings.kind == "whisper"
    if whisper != isinstance(architecture, WhisperConfig):
        raise UserError(
            f"decoder.path: {settings.path} holds a {architecture.model_type} model, but decoder.kind is "
            f"{settings.kind}"
        )
    parameters = None
    if whisper:
        limit: int | None = int(architecture.max_target_positions)
    else:
        lm = build_on_meta(architecture)
        if (depth := config.adapter.depth) is not None:
            refuse_missing_layers(len(find_stock_layers(lm)), depth.decoder_layers, type(lm).__name__)
        limit, parameters = find_position_limit(lm), count_layer_parameters(lm)
    if not Path(settings.folder).is_dir():
        return SketchedDecoder(architecture, None, parameters)
    format = ChatFormat(
        load_tokenizer(settings, settings.folder),
        TRANSCRIPT if whisper else None,
        config.data.max_text_tokens,
        limit,
        vocabulary=int(architecture.vocab_size),
    )
    return SketchedDecoder(architecture, format, parameters)


def count_layer_parameters(lm: PreTrainedModel) -> int:
    """Return the parameters of a model without its token embeddings and head."""
    outside = {id(lm.get_input_embeddings().weight)}
    if (head := lm.get_output_embeddings()) is not None:
        outside.add(id(head.weight))
    return sum(parameter.numel() for parameter in lm.parameters() if id(parameter) not in outside)


def check_questions(
    format: ChatFormat, recipe: Recipe, tokens_of: Callable[[float], float], longest: float, window: float
) -> list[str]:
    """Make the ids of the first rows of every entry, and return a sentence for each entry that loses some of them.

    Args:
        tokens_of: audio tokens of a clip of so many seconds, about.
        longest: seconds of the longest clip that is trained on.
        window: seconds of the windows of evaluation sets, where `long_clips` does not say.

    Raises:
        UserError: when an entry loses all of them.
    """
    notes = []
    for entry in (*recipe.train, *recipe.evaluate):
        problems: Counter[str] = Counter()
        first, tried = "", 0
        entry, source = open_entry(entry)
        rows = [row for row in islice(source.rows(), ROWS_READ) if isinstance(row, Row)]
        for row in rows:
            for template in entry.templates:
                try:
                    rendered = entry.render_question(row, template)
                    audio = max(
                        round(sum(tokens_of(seconds * entry.mean_stretch) for seconds in piece))
                        for piece in list_pieces(entry, row, longest, window)
                    )
                except RowError:
                    continue  # of what rows say, all are looked at elsewhere
                tried += 1
                try:
                    format.check_question(rendered.prompt, rendered.answer, audio)
                except RowError as problem:
                    first = first or f"{row.key}: {problem}"
                    problems[problem.reason] += 1
        if tried and problems.total() == tried:
            raise UserError(
                f"{entry.name}: the decoder cannot use any of the first {len(rows)} rows ({first})"
            )
        if problems:
            counts = ", ".join(f"{count} {reason}" for reason, count in problems.items())
            notes.append(f"{entry.name}: of the first {tried} questions are skipped: {counts} ({first})")
    return notes


def list_pieces(entry: RecipeEntry, row: Row, longest: float, window: float) -> list[list[float]]:
    """Return the seconds of all clips of what is read of a row at a time: the row, its crop, or each of its windows.

    Args:
        longest, window: see ``check_questions``.

    Raises:
        RowError: when the row cannot be used, such as for its length.
    """
    if isinstance(entry, Entry):
        long_clips = entry.choose_long_clips(longest, entry.name)
    else:
        assert isinstance(entry, EvalEntry)
        long_clips, longest = entry.choose_long_clips(window), LONGEST_CLIP
    return [seconds for _, seconds in list_training_pieces(row, long_clips, longest)]
