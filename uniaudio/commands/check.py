"""``uniaudio check``: everything that can be wrong with a run, found before any model is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import PretrainedConfig

from uniaudio.build.encoder_sketch import sketch_encoder
from uniaudio.build.encoders import EncoderHolder, choose_device, is_run
from uniaudio.build.model import load_stage_recipes, read_decoder_config
from uniaudio.build.regression_guard import check_guarded_sets
from uniaudio.checks.all_rows import build_rows_table, describe_problems, read_all_rows, refuse_many_unusable
from uniaudio.checks.cache_settings import (
    describe_cache_sizes,
    describe_cached_crops,
    describe_unusable_cache,
)
from uniaudio.checks.decoder import SketchedDecoder, check_questions, sketch_decoder
from uniaudio.checks.first_rows import QUESTION, TOKENS_PER_WORD, CheckedEntry, check_entry
from uniaudio.checks.imported_encoders import check_imported_encoders
from uniaudio.checks.stages import (
    ParameterNames,
    check_budget,
    check_stage_names,
    check_stage_rows,
    describe_unreached_stages,
    refuse_undecodable_sets,
    sketch_parts,
    sketch_stages,
)
from uniaudio.checks.weight_files import check_decoder_tensors, check_weight_files
from uniaudio.commands.evaluate import SHORTEST_WINDOW
from uniaudio.config.run import RunConfig
from uniaudio.config.stages import Stage
from uniaudio.console import WorkProgress, make_console, make_table, print_warning
from uniaudio.data.prompt_tokens import ChatFormat
from uniaudio.data.recipe import Recipe
from uniaudio.data.recipe_entries import RecipeEntry
from uniaudio.data.sources.source_kinds import keep_sources_open
from uniaudio.estimate import flops
from uniaudio.estimate.fake_model import build_meta_decoder
from uniaudio.hub_client import HubUnreachableError
from uniaudio.model.model_files import fetch_model_config, read_model_config, read_stock_config
from uniaudio.outputs import check_output_folder
from uniaudio.train.optim import component_of

TOKENS_PER_CLIP = 100  # of adapters that give every clip the same number
TOKENS_PER_MARKER = 3  # characters of a time in seconds, about


def check_run(config: RunConfig, console: Console | None = None) -> None:
    """Check recipes against templates, columns, audio and sizes, read what all rows say, and print it.

    Raises:
        UserError: for the first thing that would not work.
    """
    console = console or make_console()
    check_output_folder(Path(config.output_dir), "output_dir")
    for note in (*describe_unreached_stages(config), *describe_unusable_cache(config)):
        print_warning(note, console)
    encoders: list[PretrainedConfig] = []
    decoder: SketchedDecoder | None = None
    encoders_are_known = False
    with note_unreachable_hub(console):
        encoders = check_encoder_sizes(config, console)
        # none without a sketch
        for stage, trained in zip(config.stages, sketch_stages(config), strict=False):
            text = ", ".join(f"{component} {size:,}" for component, size in trained.items())
            console.print(f"stage {stage.name}, trained encoder parameters: {text}")
        encoders_are_known = True
    if encoders_are_known or Path(config.decoder.folder).is_dir():  # a Hub that is away is waited for once
        with note_unreachable_hub(console):
            decoder = sketch_decoder(config)
    check_weight_files(config)
    check_decoder_tensors(config)
    if decoder is not None:
        print_prompt(decoder, config, console)
    is_miniature = config.decoder.miniature is not None
    if encoders_are_known and not config.decoder.trust_remote_code and (decoder is not None or is_miniature):
        parts = check_all_names(config, read_decoder_config(config) if decoder is None else decoder.config)
        if parts is not None and config.decoder.kind != "whisper":
            print_adapter_size(config, parts, console)
    check_guarded_sets(config, lambda note: print_warning(note, console))
    with keep_sources_open():
        check_rows(config, encoders, decoder, console)
    console.print(
        "ok: no mistake found in config, recipes, templates, columns, rows, audio headers and sizes",
        style="green",
    )


def check_rows(
    config: RunConfig,
    encoders: list[PretrainedConfig],
    decoder: SketchedDecoder | None,
    console: Console,
) -> None:
    """Check the rows of all stages and print them by stage: first a few with their clips, then what all of them say.

    Raises:
        UserError: for the first thing that would not work.
    """
    recipes = load_stage_recipes(config)
    check = RememberedCheck()
    check_stage_rows(config, recipes, check=check)
    for stage, recipe in zip(config.stages, recipes, strict=True):
        longest = config.find_longest_clip(stage)
        pairings = [check(entry, longest) for entry in recipe.train]
        evaluated = [check(entry) for entry in recipe.evaluate]
        console.print(build_pairing_table(stage, recipe, pairings, evaluated))
        for pairing in [*pairings, *evaluated]:
            for note in pairing.notes:
                print_warning(f"{pairing.name}, split {pairing.split}: {note}", console)
        refuse_undecodable_sets(config, stage, recipe, pairings)
        check_budget(config, stage, pairings)
        if decoder is not None and decoder.format is not None:
            for note in check_questions(
                decoder.format,
                recipe,
                lambda seconds: estimate_audio_tokens(config, seconds),
                longest,
                max(SHORTEST_WINDOW, config.data.max_seconds or 0.0),
            ):
                print_warning(note, console)
        check_all_rows(config, stage, recipe, console, decoder.format if decoder is not None else None)
        console.print(describe_step_cost(config, stage, encoders, recipe, pairings, decoder))


class RememberedCheck:
    """``check_entry`` that looks at every entry once."""

    def __init__(self) -> None:
        self.checked: dict[int, tuple[RecipeEntry, CheckedEntry]] = {}

    def __call__(self, entry: RecipeEntry, longest: float = math.inf) -> CheckedEntry:
        if id(entry) not in self.checked:
            self.checked[id(entry)] = entry, check_entry(entry, longest)
        return self.checked[id(entry)][1]


def check_all_rows(
    config: RunConfig, stage: Stage, recipe: Recipe, console: Console, format: ChatFormat | None = None
) -> None:
    """Read what all rows of a recipe say, see ``read_all_rows``, and print a table and the problems.

    Raises:
        UserError: when a training set has more rows that cannot be used than the run accepts.
    """
    entries = (*recipe.train, *recipe.evaluate)
    with WorkProgress(console, "rows") as progress:
        findings = {id(entry): read_all_rows(entry, progress, format) for entry in entries}
    what = "data.max_seconds" if config.data.max_seconds else f"stages.{stage.name}.budget.audio_seconds"
    console.print(build_rows_table(stage.name, [findings[id(entry)] for entry in entries]))
    longest, data = config.find_longest_clip(stage), config.data
    for problem in describe_problems(recipe, findings, longest, what, data.pool, data.streams):
        print_warning(problem, console)
    for entry in recipe.train:
        refuse_many_unusable(findings[id(entry)], config.data.max_skipped_share)


def check_all_names(config: RunConfig, architecture: PretrainedConfig) -> nn.Module | None:
    """Refuse expressions of stages that match no parameter of the whole model, and stages that train none.

    Args:
        architecture: of the decoder.

    Returns:
        The ``encoder``, ``adapter`` and ``decoder`` that were looked at, without weights; None where the encoder is not
        built, see ``sketch_encoder``.

    Raises:
        UserError: naming the stage.
    """
    encoder = sketch_encoder(config)
    if encoder is None:
        return None
    with torch.device("meta"):
        decoder = build_meta_decoder(architecture, config, torch.float32)
        parts = sketch_parts(config, EncoderHolder(encoder), decoder.dim)
        parts.decoder = decoder
        check_stage_names(config, ParameterNames.of(parts))
    return parts


def print_adapter_size(config: RunConfig, parts: nn.Module, console: Console) -> None:
    """Print the parameters of the adapter, and whether they are more than those of the encoders with their fusion."""
    size, encoder_size = (
        sum(parameter.numel() for parameter in parts.get_submodule(name).parameters())
        for name in ("adapter", "encoder")
    )
    console.print(f"adapter {config.adapter.kind}: {size:,} parameters")
    if size > encoder_size:
        more = f"the adapter has more parameters than all encoders ({encoder_size:,})"
        print_warning(f"{more}; set a smaller adapter.hidden", console)


@contextmanager
def note_unreachable_hub(console: Console) -> Iterator[None]:
    """Say that models of the Hub are not looked at where there is no way to it."""
    try:
        yield
    except HubUnreachableError as problem:
        print_warning(f"not checked before the run starts: {problem}", console)


def check_encoder_sizes(config: RunConfig, console: Console) -> list[PretrainedConfig]:
    """Build the encoder without weights and print its size by component.

    Returns:
        The parts' configurations if all of them are Whispers, whose operations are known, and none is a run; else
        nothing.
    """
    sketch = sketch_encoder(config)
    if sketch is None:
        report_encoders_with_code(config, console)
        return []
    table = make_table("encoder", "component", "parameters", "trained", numbers=2)
    sizes: dict[str, list[int]] = {}
    for name, parameter in sketch.named_parameters():
        size = sizes.setdefault(component_of(f"encoder.{name}", config), [0, 0])
        size[0] += parameter.numel()
        size[1] += parameter.numel() * parameter.requires_grad
    for component, (all_of_it, trained) in sizes.items():
        table.add_row(component, f"{all_of_it:,}", f"{trained:,}")
    console.print(table)
    console.print(f"{sketch.dim} wide, {sketch.frame_rate:g} frames per second")
    for text in describe_cache_sizes(sketch, config):
        console.print(text)
    for text in describe_cached_crops(sketch, config):
        print_warning(text, console)
    if any(is_run(part.path) for part in config.encoders.values()):
        return []
    folders = [fetch_model_config(part.path, part.revision) for part in config.encoders.values()]
    if any(read_model_config(folder)["model_type"] != "whisper" for folder in folders):
        return []
    return [read_stock_config(folder) for folder in folders]


def report_encoders_with_code(config: RunConfig, console: Console) -> None:
    """Try the user's own classes where that is allowed, and say what is not looked at.

    Raises:
        UserError: when such a class does not keep the contract of encoders.
    """
    names = ", ".join(f"{name} ({each.path or each.kind})" for name, each in config.encoders.items())
    console.print(
        f"encoders {names}: one needs code of its own, so their sizes are printed when the run starts"
    )
    if not any(":" in settings.kind for settings in config.encoders.values()):
        return
    if not config.trust.code:
        print_warning(
            "your own classes are tested on noise when the run starts, or here with --allow-code", console
        )
        return
    for warning in check_imported_encoders(config, choose_device()):
        print_warning(warning, console)
    console.print(
        "your own classes, tested on noise: widths, numbers of frames, values and gradients are as stated"
    )


def build_pairing_table(
    stage: Stage, recipe: Recipe, train: list[CheckedEntry], evaluated: list[CheckedEntry]
) -> Table:
    """Lay out what a stage draws and what it is evaluated on."""
    columns = ("dataset:template", "split", "rows", "mean s", "answer words", "labels", "share of draws")
    table = make_table(f"stage {stage.name}: recipe {recipe.name}", *columns, numbers=5)
    shares: list[float | None] = [*recipe.compute_train_shares(), *[None] * len(evaluated)]
    for pairing, share in zip([*train, *evaluated], shares, strict=True):
        table.add_row(
            pairing.name,
            pairing.split,
            "stream" if pairing.rows is None else str(pairing.rows),
            f"{pairing.seconds:.1f}",
            f"{pairing.answer_words:.1f}",
            pairing.labels,
            "evaluated" if share is None else f"{share:.1%}",
        )
    return table


def describe_step_cost(
    config: RunConfig,
    stage: Stage,
    encoders: list[PretrainedConfig],
    recipe: Recipe,
    pairings: list[CheckedEntry],
    decoder: SketchedDecoder | None,
) -> str:
    """Describe one optimizer step: real audio, examples and, when the configs are at hand, modelled operations."""
    lengths = [p.augmented_seconds for p in pairings]
    shares = recipe.compute_train_shares()
    seconds = sum(share * length for share, length in zip(shares, lengths, strict=True))
    words = sum(share * p.answer_words for share, p in zip(shares, pairings, strict=True))
    micro_batches = config.train.micro_batches or 1
    costs = [p.compute_cost(stage.budget.per_example) for p in pairings]
    cost = sum(share * each for share, each in zip(shares, costs, strict=True))
    examples = micro_batches * stage.budget.audio_seconds / cost
    hours = examples * seconds / 3600
    length = (
        f"{stage.steps} steps are {stage.steps * hours:.1f} h of audio"
        if stage.steps is not None
        else f"{stage.hours:g} h of audio are about {(stage.hours or 0) / hours:.0f} steps"
    )
    text = (
        f"one step: about {examples:.0f} examples, {examples * seconds:.0f} s of audio in {micro_batches} "
        f"micro-batch(es); {length}"
    )
    if not encoders:
        return text
    operations = 0.0
    for part, settings in zip(encoders, config.encoders.values(), strict=True):
        times = {"full": flops.TRAINED, "lora": flops.FROZEN_BELOW_GRADIENT, "frozen": 1}[settings.train]
        operations += times * examples * flops.count_whisper_flops(part, seconds)
    architecture = read_decoder_config(config) if config.decoder.miniature is not None else None
    architecture = decoder.config if decoder is not None else architecture
    if architecture is not None:
        tokens = estimate_audio_tokens(config, seconds) + words * TOKENS_PER_WORD + QUESTION
        parameters = None if decoder is None else decoder.layer_parameters
        forward = flops.count_any_decoder_flops(architecture, tokens, parameters)
        forward += flops.count_head_flops(architecture, words * TOKENS_PER_WORD + 1)
        operations += flops.FROZEN_BELOW_GRADIENT * examples * forward
    return f"{text}; about {operations / 1e9:.0f} GFLOP per step"


def estimate_audio_tokens(config: RunConfig, seconds: float) -> float:
    """Return the audio tokens of a clip of so many seconds, about."""
    if config.decoder.kind == "whisper":
        return 0.0
    rate = config.adapter.tokens_per_second
    every = config.adapter.time_markers
    return (seconds * rate if rate else TOKENS_PER_CLIP) + (
        TOKENS_PER_MARKER * seconds / every if every else 0.0
    )


def print_prompt(decoder: SketchedDecoder, config: RunConfig, console: Console) -> None:
    """Show what stands around every question, where control characters are written out."""
    format = decoder.format
    if format is None:
        console.print(
            f"decoder {config.decoder.path}: a {decoder.config.model_type} model; its tokenizer is fetched "
            "from the Hub when the run starts",
        )
        return
    prompt = f"{format.prefix}QUESTION{format.suffix}ANSWER{format.decode([format.end_of_turn])}"
    limit = f"; at most {format.max_positions} tokens with audio" if format.max_positions else ""
    console.print(f"prompt: {prompt!r}{limit}", soft_wrap=True)
