"""The commands of ``uniaudio data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from uniaudio.outputs import check_file_option, check_folder_option

data = typer.Typer(help="Look at, pack and time the data of a recipe.", no_args_is_help=True)
RecipeName = Annotated[str, typer.Argument(help="Recipe or run config: a path or a name.")]


@data.command("stats")
def data_stats(
    recipe: RecipeName,
    steps: Annotated[int | None, typer.Option(help="Steps to count epochs for.", min=1)] = None,
    rows: Annotated[int, typer.Option(help="Rows of every source to look at.", min=1)] = 2000,
    out: Annotated[Path | None, typer.Option(help="JSON file to write.", callback=check_file_option)] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG file to draw the lengths into.", callback=check_file_option)
    ] = None,
) -> None:
    """Hours, lengths of clips and answers, shares and epochs of every source."""
    from uniaudio.tools.stats import show_stats

    show_stats(recipe, steps, rows, out, plot)


@data.command("pack")
def data_pack(
    recipe: RecipeName,
    out: Annotated[Path, typer.Option(help="New folder to write.", callback=check_folder_option)],
    shard_mib: Annotated[int, typer.Option(help="Size of a file, in MiB.", min=1)] = 512,
    rows: Annotated[
        int | None,
        typer.Option(help="Keep so many rows of every training split, a reservoir to replay.", min=1),
    ] = None,
) -> None:
    """Write the recipe's clips as 16 kHz FLAC in large files with an index, for fast local training."""
    from uniaudio.tools.pack import pack_recipe

    pack_recipe(recipe, out, shard_mib, rows=rows)


@data.command("bench")
def data_bench(
    recipe: RecipeName,
    seconds: Annotated[float, typer.Option(help="Seconds to measure each number of workers.")] = 10,
    workers: Annotated[list[int] | None, typer.Option(help="Numbers of workers to try; repeatable.")] = None,
) -> None:
    """Seconds of audio per second that the recipe's data deliver, by number of workers."""
    from uniaudio.tools.throughput import bench_recipe

    bench_recipe(recipe, seconds, workers)
