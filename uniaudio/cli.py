"""The command line: a user's mistake ends with one sentence and exit code 2.

The commands and their options are in ``cli_panels/``, a file for each panel of ``uniaudio --help``. They import the
heavy packages when they are called, so that the help and a typing mistake answer at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from uniaudio import __version__
from uniaudio.cli_panels import data_panel, evaluate_panel, train_panel, use_panel
from uniaudio.console import silence_known_warnings
from uniaudio.errors import LostProcessError, UserError
from uniaudio.launched_processes import leave_message

app = typer.Typer(
    name="uniaudio",
    help="Train one audio encoder for speech, sound and music through a frozen language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for panel in (train_panel, evaluate_panel, data_panel, use_panel):
    app.add_typer(panel.app)


def show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=show_version, is_eager=True),
    ] = False,
) -> None:
    """Shared options of all commands."""


def with_resume_value(arguments: list[str]) -> list[str]:
    """Let ``--resume`` stand alone: options with an optional value do not exist in typer."""
    result = []
    for index, argument in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        result.append("--resume=yes" if argument == "--resume" and following != "auto" else argument)
    return result


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and leave with the exit codes 0, 1, 2 (user's mistake) or 75 (stopped, may continue)."""
    silence_known_warnings()
    try:
        app(args=with_resume_value(sys.argv[1:] if arguments is None else arguments))
    except (UserError, LostProcessError) as error:
        if not leave_message(str(error)):
            typer.echo(f"uniaudio: {error}", err=True)
        sys.exit(2 if isinstance(error, UserError) else 1)
