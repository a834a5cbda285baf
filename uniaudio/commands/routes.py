"""Routes of a run."""

from __future__ import annotations

from pathlib import Path

from uniaudio.console import make_console
from uniaudio.evaluate.routing import build_routing_tables, read_choices, write_routes
from uniaudio.outputs import check_output_folder


def show_routes(run: Path, out: Path | None, last: float) -> None:
    """Print what the encoder of a run chose by task, and write it as JSON and as a heat map."""
    out = check_output_folder(out or run, "output")
    routes = read_choices(run, last)
    console = make_console()
    for table in build_routing_tables(routes):
        console.print(table.lay_out())
    for file in write_routes(routes, out):
        console.print(str(file), soft_wrap=True)
