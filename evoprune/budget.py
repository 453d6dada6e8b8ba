"""Budgets as people write them: a fraction, a percentage, or an absolute cost."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from search_spaces.errors import BudgetError

_FORMS = 'write a fraction in (0, 1] ("0.3"), a percentage in (0, 100] ("30%") or a positive cost ("62M")'
_UNITS = {"k": 1e3, "M": 1e6, "G": 1e9}
_PATTERN = re.compile(r"(?P<number>[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|\.[0-9]+)\s*(?P<unit>[%kKmMgG]?)")


@dataclass(frozen=True)
class Budget:
    """An upper limit on the cost of the small network.

    Attributes:
        text: What the user wrote.
        value: The limit: a share in (0, 1] of the dense cost, or a number of MACs or parameters.
        is_fraction: Whether ``value`` is a share.
    """

    text: str
    value: float
    is_fraction: bool

    def as_fraction(self, cost_dense: int, metric: str) -> float:
        """Return the limit as a share in (0, 1] of ``cost_dense``, which is counted in ``metric``.

        Raises:
            BudgetError: An absolute limit is larger than ``cost_dense``.
        """
        if self.is_fraction:
            return self.value
        if self.value > cost_dense:
            raise BudgetError(
                f"a budget must not exceed the cost of the dense network, but {self.text!r} is "
                f"{format_count(self.value)} {metric} and the dense network has {format_count(cost_dense)}; lower it"
            )
        return self.value / cost_dense


def parse_budget(text: str | float) -> Budget:
    """Return the budget that ``text`` stands for: ``"0.3"``, ``0.3``, ``"30%"``, ``"62M"`` (also ``k`` and ``G``).

    Raises:
        BudgetError: ``text`` has none of these forms, or its number lies outside of the range of its form.
    """
    written = str(text).strip()
    match = _PATTERN.fullmatch(written)
    if match is None:
        raise BudgetError(f"a budget must be a positive number, but got {written!r}; {_FORMS}")
    number, unit = float(match["number"]), match["unit"]
    if unit in ("", "%"):
        fraction = number / 100 if unit else number
        if not 0 < fraction <= 1:
            raise BudgetError(f"a budget must be a share in (0, 1] of the dense cost, but got {written!r}; {_FORMS}")
        return Budget(written, fraction, is_fraction=True)
    absolute = number * _UNITS["k" if unit in "kK" else unit.upper()]
    if not (absolute >= 1 and math.isfinite(absolute)):
        raise BudgetError(f"an absolute budget must be at least 1 and finite, but got {written!r}; {_FORMS}")
    return Budget(written, absolute, is_fraction=False)


def check_reachable(fraction: float, cost_dense: int, cost_range: tuple[int, int], metric: str) -> None:
    """Check that a network of at most ``fraction * cost_dense`` exists; ``cost_range`` is the (smallest, largest) one.

    Raises:
        BudgetError: Even the smallest reachable network costs more; the message names the reachable range.
    """
    smallest, largest = cost_range
    if fraction * cost_dense < smallest:
        # Rounded up, so that the number in the message is itself a budget that can be reached.
        low = math.ceil(smallest / cost_dense * 1e4) / 1e4
        raise BudgetError(
            f"a budget must lie in the reachable range {low:.4f} to {largest / cost_dense:.4f} of the dense {metric} "
            f"({format_count(smallest)} to {format_count(largest)}), but got {fraction:.4g} "
            f"({format_count(fraction * cost_dense)}); raise the budget, or lower `min_channels`, `round_to` or the "
            "number of protected layers (`evoprune inspect` lists them)"
        )


def format_count(count: float) -> str:
    """Return ``count`` for people, with four significant digits: ``313.5 M``, ``41.2 k``, ``950``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.0f}"
