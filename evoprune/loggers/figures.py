"""What loggers have in common: the figures of a generation, and the error of an extra that is missing."""

from __future__ import annotations

import importlib
import math
from numbers import Real
from typing import Any

from evoprune.callbacks import GenerationFinished
from search_spaces.errors import OptionError


def figures_of(event: GenerationFinished) -> dict[str, float]:
    """Return the finite numbers of a generation by name: its logbook row, and the evaluations and seconds so far."""
    figures = {**event.row, "n_evaluations": event.n_evaluations, "n_cached": event.n_cached}
    figures["elapsed_s"] = event.elapsed_s
    return {
        name: float(value)
        for name, value in figures.items()
        if isinstance(value, Real) and name != "gen" and math.isfinite(value)
    }


def import_extra(module: str, extra: str) -> Any:
    """Return ``module``, which the extra ``extra`` installs.

    Raises:
        OptionError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise OptionError(
            f"the logger {extra!r} needs the extra of that name, but {error}; "
            f"install it with: pip install 'evoprune[{extra}]'"
        ) from error
