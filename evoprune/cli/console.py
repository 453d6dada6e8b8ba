"""The two streams: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from typing import Any, TextIO

from rich.console import Console

_RESULTS: ContextVar[TextIO | None] = ContextVar("_RESULTS", default=None)


def stderr_console() -> Console:
    """Return a console for progress, notes and errors."""
    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    """Return a console for tables."""
    return Console(highlight=False)


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
