"""The commands of ``uniaudio data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uniaudio.outputs import check_file_option, check_folder_option

data = typer.Typer(help="Summarise, pack and time the data of a recipe.", no_args_is_help=True)
RecipeName = Annotated[str, typer.Argument(help="Recipe or run config: a path or a name.")]


@data.command("stats", epilog="Example: uniaudio data stats configs/birds.yaml --steps 20000")
def data_stats(
    recipe: RecipeName,
    steps: Annotated[int | None, typer.Option(help="Steps to count epochs for.", min=1)] = None,
    rows: Annotated[int, typer.Option(help="Rows of every source to read.", min=1)] = 2000,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", callback=check_file_option)] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG file to draw the lengths into.", callback=check_file_option)
    ] = None,
) -> None:
    """Summarise hours, lengths, shares and epochs by source.

    Reads: the recipe, its cards and templates, and up to --rows rows of every source.
    Writes: the figures as JSON (--out) and a histogram of lengths as PNG (--plot).
    Prints: a table by source.
    """
    from uniaudio.commands.data_stats import show_stats

    show_stats(recipe, steps, rows, out, plot)


@data.command("pack", epilog="Example: uniaudio data pack birds --out packed")
def data_pack(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option(help="New folder to write.", callback=check_folder_option)],
    shard_mib: Annotated[int, typer.Option(help="Size of a file, in MiB.", min=1)] = 512,
    rows: Annotated[
        int | None,
        typer.Option(help="Keep this many rows of every training split, as a sample to replay.", min=1),
    ] = None,
) -> None:
    """Convert clips to FLAC in large files with an index.

    Reads: the recipe, its cards and templates, all rows and clips.
    Writes: a new folder with 16 kHz FLAC, cards and a recipe over them, for fast local training.
    Prints: rows and hours by split, and the recipe to train with.
    """
    from uniaudio.commands.data_pack import pack_recipe

    pack_recipe(recipe, out, shard_mib, rows=rows)


@data.command("bench", epilog="Example: uniaudio data bench birds --seconds 10")
def data_bench(
    recipe: RecipeName,
    seconds: Annotated[float, typer.Option(help="Seconds to measure each number of workers.")] = 10,
    workers: Annotated[list[int] | None, typer.Option(help="Numbers of workers to try; repeatable.")] = None,
) -> None:
    """Measure the throughput of data loading by workers.

    Reads: the recipe, its cards and templates, and clips for --seconds with each number of workers.
    Writes: nothing.
    Prints: a table of seconds of audio per second.
    """
    from uniaudio.commands.data_bench import bench_recipe

    bench_recipe(recipe, seconds, workers)
