"""The two streams: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

_WIDER_THAN_ANY_TABLE = 100_000
_RESULTS: ContextVar[TextIO | None] = ContextVar("_RESULTS", default=None)


def stderr_console() -> Console:
    """Return a console for progress, notes and errors."""
    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    """Return a console for tables; as wide as they are where it is no terminal, whatever ``COLUMNS`` says."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDER_THAN_ANY_TABLE
    return console


def print_whole(table: Table) -> None:
    """Print ``table`` on stdout with all that is in it, on a terminal that is narrower too.

    Columns that fold are folded there; a table without such ones is printed as wide as it is.
    """
    console = stdout_console()
    if not any(column.overflow == "fold" for column in table.columns):
        unbounded = console.options.update(max_width=_WIDER_THAN_ANY_TABLE)
        console.width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    console.print(table)


def print_json(value: Any, *, in_one_line: bool = False) -> None:
    """Print ``value`` alone on stdout; NaN and infinity do not occur in results and are refused."""
    stream = _RESULTS.get() or sys.stdout
    stream.write(json.dumps(value, indent=None if in_one_line else 2, allow_nan=False) + "\n")
    stream.flush()


@contextmanager
def stdout_for_json_alone() -> Iterator[None]:
    """Send to stderr what is printed by others meanwhile, such as the user's own modules, and results to stdout."""
    token = _RESULTS.set(sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _RESULTS.reset(token)
