"""The Typer application: every command in one literal list."""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from evoprune.cli import (
    latency_command,
    list_command,
    network_commands,
    report_command,
    search_commands,
    watch_command,
)
from evoprune.cli.errors import INTERRUPTED

app = typer.Typer(
    name="evoprune",
    help="Evolve which channels of a trained convolutional network to keep under a compute budget.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

for command in (
    search_commands.search,
    search_commands.resume,
    watch_command.watch,
    report_command.report,
    network_commands.inspect,
    latency_command.latency,
    network_commands.evaluate,
    network_commands.finetune,
    network_commands.pick,
    network_commands.export,
    list_command.list_names,
):
    app.command(name="list" if command is list_command.list_names else None)(command)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib import metadata

        try:
            typer.echo(metadata.version("evoprune"))
        except metadata.PackageNotFoundError:
            typer.echo("unknown: evoprune is not installed here; install it with pip install .", err=True)
            raise typer.Exit(1) from None
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Evolve which channels of a trained convolutional network to keep under a compute budget."""


def main() -> None:
    """Run the command line of this process; one that is interrupted ends with its exit code, however often it is."""
    try:
        app()
    except SystemExit as end:
        if end.code == INTERRUPTED:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # taking all modules down takes a moment
        raise
