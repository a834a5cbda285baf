"""Arguments and options that several commands have, and what they say while libraries load."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand
from typer.exceptions import TyperException

from uniaudio.config.trust import Trust
from uniaudio.console import announce
from uniaudio.outputs import check_file_option, check_folder_option

if TYPE_CHECKING:
    from uniaudio.config.run import RunConfig

RecipeName = Annotated[str, typer.Argument(help="Recipe or run config: a path or a name.")]
Config = Annotated[str, typer.Argument(help="Run config: a path, or a name found in configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Overrides such as train.max_steps=100; +mini selects the miniature variant."),
]
MODEL_HELP = (
    "Run folder, checkpoint, exported model, folder or Hub name of an encoder, or random:PATH; "
    "options as in 'MODEL?pad_to=30'."
)
Model = Annotated[str, typer.Argument(help=MODEL_HELP)]
Resume = Annotated[
    str | None,
    typer.Option(
        help="Continue the run in output_dir; 'auto': continue it, or start it if there is no checkpoint."
    ),
]
JsonFile = Annotated[
    Path | None, typer.Option("-o", "--out", help="JSON file to write.", callback=check_file_option)
]
ResultFolder = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="Folder to write; default: RUN.", callback=check_folder_option),
]
NewRunFolder = Annotated[
    Path, typer.Option("-o", "--out", help="New run folder to write.", callback=check_folder_option)
]
MaxExamples = Annotated[
    int | None,
    typer.Option(
        help="Largest number of rows of each set; default: as in recipe or config, else all.", min=1
    ),
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with a model.")
]
AllowCode = Annotated[
    bool,
    typer.Option(
        "--allow-code", help="Import classes (encoders, callbacks) that a config names as module:Class."
    ),
]


class CommandWithOverrides(TyperCommand):
    """A command whose config can be overridden: an unknown option may be meant as an override."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except TyperException as error:
            if error.message.startswith("No such option"):
                error.message += "; settings are written without dashes, as in train.max_steps=100"
            raise


@contextmanager
def slow_imports() -> Iterator[None]:
    """Announce that libraries are loading; garbage collection is off meanwhile, it would take a fifth of the time."""
    if "torch" not in sys.modules:
        announce("loading torch and transformers ...")
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def open_config(config: str, overrides: Sequence[str], trust: Trust) -> RunConfig:
    """Read a run config before the slow imports, so that a mistake in it is answered at once.

    Raises:
        UserError: as ``open_run``.
    """
    from uniaudio.build.run_config import open_run
    from uniaudio.config.run_files import MINI

    if MINI in overrides:  # its models may have to be made first
        with slow_imports():
            importlib.import_module("torch")
    return open_run(config, overrides, trust)
