"""From errors to exit codes: 2 for wrong use, 1 for a failed run, 130 for an interrupted one; one message each."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import NoReturn, ParamSpec

import typer
from rich.markup import escape

from evoprune.cli.console import stderr_console, stdout_for_json_alone
from search_spaces.errors import (
    BudgetError,
    DataError,
    EvoPruneError,
    OptionError,
    RunDirectoryError,
    WeightsError,
)

WRONG_USE = 2
FAILED = 1
INTERRUPTED = 130
_DEBUG_VARIABLE = "EVOPRUNE_DEBUG"
_WRONG_USE_ERRORS = (OptionError, BudgetError, WeightsError, DataError, RunDirectoryError)

#: Options of the Python interface to the parameters of commands that carry another name.
RENAMED = {
    "max_time_s": "max_time",
    "n_checks": "checks",
    "n_distillation_steps": "distill_steps",
    "n_elites": "elites",
    "n_generations": "generations",
    "n_halvings": "halvings",
    "n_layer_distillation_steps": "layer_distill_steps",
    "population_size": "population",
}

P = ParamSpec("P")


def reports_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Return ``command`` with every error turned into one message on stderr and an exit code.

    With ``as_json`` nothing but its result is on stdout, whatever a model's own code prints. Options are called in the
    message what they are called on the command line.
    """
    parameters = inspect.signature(command).parameters

    @functools.wraps(command)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with stdout_for_json_alone() if kwargs.get("as_json") else nullcontext():
                command(*args, **kwargs)
        except typer.Exit:
            raise
        except EvoPruneError as error:
            from evoprune.artefact import ArtefactError
            from evoprune.interruption import InterruptedRunError

            message = in_flags(str(error), parameters)
            if isinstance(error, InterruptedRunError):
                stderr_console().print(f"[yellow]{escape(str(error))}[/yellow]", soft_wrap=True)
                raise typer.Exit(INTERRUPTED) from None
            _fail(error, message, WRONG_USE if isinstance(error, (*_WRONG_USE_ERRORS, ArtefactError)) else FAILED)
        except KeyboardInterrupt:
            stderr_console().print("[yellow]interrupted[/yellow]")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader went away, as `head` does; the stream must not be flushed again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(FAILED) from None
        except Exception as error:  # the last resort: a message, never a traceback
            _fail_unexpectedly(error)

    return guarded


def in_flags(message: str, parameters: Collection[str]) -> str:
    """Return ``message`` with options of the Python interface called as on a command line with ``parameters``."""
    from evoprune.options import SearchOptions

    flags = {name: name for name in SearchOptions.model_fields if "_" in name} | RENAMED
    for name, parameter in flags.items():
        if parameter in parameters:
            message = re.sub(rf"(?<![\w/.-]){name}\b", "--" + parameter.replace("_", "-"), message)
    return message


def _fail(error: EvoPruneError, message: str, exit_code: int) -> NoReturn:
    stderr_console().print(f"[bold red]error:[/bold red] {escape(message)}", soft_wrap=True)
    if os.environ.get(_DEBUG_VARIABLE):
        raise error
    raise typer.Exit(exit_code) from None


def _fail_unexpectedly(error: Exception) -> NoReturn:
    if os.environ.get(_DEBUG_VARIABLE):
        raise error
    stderr_console().print(
        f"[bold red]error:[/bold red] unexpected {type(error).__name__}: {escape(str(error))}\n"
        f"This is not your doing. Please report it with the traceback that {_DEBUG_VARIABLE}=1 shows.",
        soft_wrap=True,
    )
    raise typer.Exit(FAILED) from None
