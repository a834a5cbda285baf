"""Commands about data and YAML files: the panel "Data" of `uniaudio --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uniaudio.cli_panels.arguments import JsonFile, RecipeName, slow_imports
from uniaudio.errors import UserError
from uniaudio.extras import require_package
from uniaudio.outputs import check_file_option, check_folder_option

PANEL = "Data"  # of `uniaudio --help`

app = typer.Typer()
data = typer.Typer(help="Import, summarize, pack and benchmark data.", no_args_is_help=True)
app.add_typer(data, name="data", rich_help_panel=PANEL)


@data.command("stats", epilog="Example: uniaudio data stats configs/birds.yaml --steps 20000")
def data_stats(
    recipe: RecipeName,
    steps: Annotated[
        int | None, typer.Option(help="Number of steps for which to count epochs; needs a run config.", min=1)
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows to read from every source.", min=1)] = 2000,
    out: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG file for a histogram of lengths.", callback=check_file_option)
    ] = None,
    hours: Annotated[
        bool,
        typer.Option("--hours", help="Only add up the hours that the cards state, without opening the data."),
    ] = False,
) -> None:
    """Summarize hours, lengths, shares and epochs by source.

    Reads: the recipe, its cards and templates, and up to --rows rows of every source (none with --hours).
    Writes: the figures as JSON (--out) and a histogram of lengths as PNG (--plot).
    Prints: a table by source.
    """
    if plot is not None:
        require_package("matplotlib", "--plot")
    from uniaudio.checks.named_paths import refuse_missing_recipe

    refuse_missing_recipe(recipe)
    from uniaudio.commands.data_stats import show_hours, show_stats

    if not hours:
        show_stats(recipe, steps, rows, out, plot)
    elif steps is not None or plot is not None:
        raise UserError(
            "--hours does not open the data, so it knows neither epochs (--steps) nor lengths "
            "(--plot); leave them out"
        )
    else:
        show_hours(recipe, out)


@data.command("import", epilog="Example: uniaudio data import librispeech ~/LibriSpeech -o my_data")
def data_import(
    kind: Annotated[
        str,
        typer.Argument(
            help="Layout of the source: xares-llm, common-voice, librispeech, lhotse, nemo, messages or saved."
        ),
    ],
    source: Annotated[Path, typer.Argument(help="Folder or file to import; it is only read.")],
    out: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="New folder for recipe, cards and templates.", callback=check_folder_option
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Name of the recipe. Default: that of the new folder.")
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="Folder that contains the clips or shards, if the source does not name it."),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option(
            help="xares-llm: all (default), task1, task2, the name of one set, or a file; repeatable."
        ),
    ] = None,
    turns: Annotated[
        str, typer.Option(help="messages: train on the last answer of a conversation (last), or on all.")
    ] = "last",
) -> None:
    """Write cards, templates and a recipe for published data.

    Reads: the source; of the audio only the headers of the first rows.
    Writes: a new folder with the recipe, its cards in datasets/, templates and, if needed, manifests.
    Prints: rows, hours, columns and answers of every split, what was left out, and the next commands.
    """
    from uniaudio.checks.named_paths import refuse_missing_source

    refuse_missing_source(source)
    from uniaudio.commands.data_import import import_data

    import_data(kind, source, out, name, root, config or [], turns)


@data.command("pack", epilog="Example: uniaudio data pack birds --out packed")
def data_pack(
    recipe: RecipeName,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="New folder to write.", callback=check_folder_option)
    ],
    shard_mib: Annotated[int, typer.Option(help="Size of a file, in MiB.", min=1)] = 512,
    rows: Annotated[
        int | None,
        typer.Option(help="Keep only this many rows of every training split, as a sample for replay.", min=1),
    ] = None,
) -> None:
    """Convert clips to FLAC in large files with an index.

    Reads: the recipe, its cards and templates, all rows and clips.
    Writes: a new folder with 16 kHz FLAC, cards and a recipe for them, for fast local training.
    Prints: rows and hours by split, and the recipe to train with.
    """
    from uniaudio.checks.named_paths import refuse_missing_recipe

    refuse_missing_recipe(recipe)
    from uniaudio.commands.data_pack import pack_recipe

    pack_recipe(recipe, out, shard_mib, rows=rows)


@data.command("bench", epilog="Example: uniaudio data bench birds --seconds 10")
def data_bench(
    recipe: RecipeName,
    seconds: Annotated[
        float, typer.Option(help="Seconds to measure each number of workers.", min=0.1, max=86400)
    ] = 10,
    workers: Annotated[
        list[int] | None,
        typer.Option(
            help="Number of workers to try; repeatable. Default: 0, 1, half of the CPU cores, and all.", min=0
        ),
    ] = None,
) -> None:
    """Measure data-loading throughput by number of workers.

    Reads: the recipe, its cards and templates, and clips for --seconds with each number of workers.
    Writes: nothing.
    Prints: a table of seconds of audio per second.
    """
    from uniaudio.checks.named_paths import refuse_missing_recipe

    refuse_missing_recipe(recipe)
    from uniaudio.commands.data_bench import bench_recipe

    bench_recipe(recipe, seconds, workers)


@app.command(rich_help_panel=PANEL, epilog="Example: uniaudio preview data_recipes/birds.yaml -n 5")
def preview(
    recipe: Annotated[str, typer.Argument(help="Recipe or run config (a path or a name), or run folder.")],
    number: Annotated[int, typer.Option("-n", "--number", help="Examples to show.", min=1)] = 5,
    decoder: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub name of a decoder, for its tokenizer; default: that of the config or run, "
            "otherwise a small one trained on the texts."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the order of examples.")] = 0,
) -> None:
    """Show rendered examples of a recipe with token counts.

    Reads: the recipe, its cards and templates, some rows and their clips, the decoder's tokenizer.
    Writes: nothing.
    Prints: prompts with the supervised answer in colour, tokens, clip seconds; skipped rows with their reasons.
    """
    from uniaudio.checks.named_paths import refuse_missing_recipe

    refuse_missing_recipe(recipe)
    from uniaudio.commands.preview import preview as show

    show(recipe, number, decoder, seed)


@app.command(
    rich_help_panel=PANEL, epilog="Example: uniaudio new birds --data recordings/birds --label species"
)
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the new task and its files.")],
    data_place: Annotated[
        str,
        typer.Option(
            "--data",
            help="Folder of class folders, folder of clips with metadata, manifest, Parquet file(s), tars, "
            "folder written by save_to_disk, or Hub name.",
        ),
    ],
    text: Annotated[
        str | None, typer.Option(help="Column with the text to learn, such as a transcript.")
    ] = None,
    label: Annotated[str | None, typer.Option(help="Column with the label to learn.")] = None,
    question: Annotated[
        str | None, typer.Option("--ask", help="The question; default: one that fits the column.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Folder or Hub name of an encoder, or a run; default: a Whisper model.")
    ] = None,
    decoder: Annotated[
        str | None, typer.Option(help="Folder or Hub name of a language model; default: a small one.")
    ] = None,
    hub_config: Annotated[
        str | None, typer.Option("--config", help="Configuration of a Hub dataset that has several.")
    ] = None,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Project folder to write to.", callback=check_folder_option)
    ] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Write template, card, recipe and run config for your data.

    Reads: the rows of the data, and the headers of some clips.
    Writes: templates/NAME.yaml, data_recipes/datasets/NAME.yaml, data_recipes/NAME.yaml and configs/NAME.yaml.
    Prints: the column to learn, the splits, and the command that trains.
    """
    from uniaudio.checks.named_paths import refuse_missing_data_place, refuse_missing_encoder

    if text is not None and label is not None:
        raise UserError("give --text or --label, not both")
    refuse_missing_data_place(data_place)
    for model in filter(None, (encoder, decoder)):
        refuse_missing_encoder(model)
    with slow_imports():
        from uniaudio.commands.new import NewTask, create_task

    create_task(NewTask(name, data_place, text, label, question, encoder, decoder, hub_config, out, force))


@app.command(rich_help_panel=PANEL, epilog="Example: uniaudio schema run")
def schema(
    kind: Annotated[str, typer.Argument(help="run, recipe, card, template or suite.")],
) -> None:
    """Print the JSON schema of a kind of YAML file, for editors.

    Reads: nothing.
    Writes: nothing.
    Prints: a JSON schema (draft 2020-12).
    """
    from uniaudio.commands.schema import show_schema

    typer.echo(show_schema(kind))
