"""The two streams: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console


def stderr_console() -> Console:
    """Return a console for progress, notes and errors."""
    return Console(stderr=True, highlight=False)


def stdout_console() -> Console:
    """Return a console for tables."""
    return Console(highlight=False)


def print_json(value: Any, *, in_one_line: bool = False) -> None:
    """Print ``value`` alone on stdout; NaN and infinity do not occur in results and are refused."""
    sys.stdout.write(json.dumps(value, indent=None if in_one_line else 2, allow_nan=False) + "\n")
    sys.stdout.flush()
