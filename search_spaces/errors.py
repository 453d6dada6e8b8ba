"""The errors of all three packages, rooted in the lowest layer so that one ``except`` clause catches them all.

Every error is also the builtin that a caller would expect, and every message states the rule that was broken, the
values that broke it, the place, and a remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import partial
from itertools import takewhile


class EvoPruneError(Exception):
    """Root of all errors that evoprune raises on purpose."""


class OptionError(EvoPruneError, ValueError):
    """An option or argument breaks its stated rule."""


class UnknownNameError(OptionError, LookupError):
    """A name is not in the list of valid ones; the message lists them and suggests the nearest."""

    def __init__(self, kind: str, name: str, valid_names: Iterable[str]) -> None:
        """Build the message from the ``kind`` of thing, the unknown ``name`` and the ``valid_names``."""
        valid = sorted(valid_names)
        near = difflib.get_close_matches(name, valid, n=len(valid) or 1, cutoff=0.5)
        hint = f"did you mean {max(near, key=partial(_nearness, name))!r}? " if near else ""
        super().__init__(f"unknown {kind} {name!r}; {hint}valid: {', '.join(valid)}")


def _nearness(name: str, valid: str) -> tuple[float, int]:
    """Return how alike two names are; of equally like ones the one with the longer common beginning is nearer."""
    beginning = takewhile(lambda pair: pair[0] == pair[1], zip(name, valid, strict=False))
    return difflib.SequenceMatcher(None, valid, name).ratio(), len(list(beginning))


def check_rules(rules: Iterable[tuple[str, bool, object]], *, purpose: str = "") -> None:
    """Check options that have defaults.

    Args:
        rules: As many as wanted: the rule as it is told, whether it holds, and the value.
        purpose: What the options are for, such as ``a search``.

    Raises:
        OptionError: A rule does not hold; the message is about the first such one.
    """
    for rule, holds, value in rules:
        if not holds:
            place = f" for {purpose}" if purpose else ""
            raise OptionError(f"`{rule}` must hold{place}, but got {value}; leave it out for the default")


class TraceError(EvoPruneError, RuntimeError):
    """A network could not be turned into a channel graph."""


class VerificationError(EvoPruneError, RuntimeError):
    """Masked and sliced networks disagree where the search space promised that they agree."""


class GenomeShapeError(EvoPruneError, ValueError):
    """An array of genomes has the wrong shape or dtype for its search space."""


class BudgetError(EvoPruneError, ValueError):
    """A budget is malformed or cannot be reached."""


class WeightsError(EvoPruneError, ValueError):
    """A weight file cannot be read, or does not fit the network."""


class DataError(EvoPruneError, ValueError):
    """A data set cannot be read, or breaks its stated layout."""


class ObjectiveValueError(EvoPruneError, ValueError):
    """An objective value is NaN or infinite where only finite ones have a meaning."""


class RunDirectoryError(EvoPruneError, OSError):
    """A run directory cannot be created, read or continued."""


class ExecutionError(EvoPruneError, RuntimeError):
    """Workers could not be started, or a population could not be evaluated."""
