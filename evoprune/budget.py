"""Budgets as people write them: a fraction, a percentage, or an absolute cost, of one metric or of several."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from search_spaces.cost import whole_limit
from search_spaces.errors import BudgetError, OptionError, UnknownNameError

Budgets: TypeAlias = Mapping[str, float]
"""Metric to the largest share in (0, 1] of the dense cost, in the order in which they were given; all hold at once."""


@dataclass(frozen=True)
class Metric:
    """Something that a budget can limit.

    Attributes:
        heading: What it is called above a column.
        units: Size of every unit of an absolute budget, by its name in lower case, in whole units of the cost.
        example: An absolute budget.
        purpose: What is counted.
    """

    heading: str
    units: Mapping[str, float]
    example: str
    purpose: str


_COUNTS = {"k": 1e3, "m": 1e6, "g": 1e9}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
_TIMES = {"ns": 1.0, "us": 1e3, "ms": 1e6, "s": 1e9}
LATENCY = "latency"
METRICS: Mapping[str, Metric] = {
    "macs": Metric("MACs", _COUNTS, "62M", "multiply-adds for one image"),
    "params": Metric("params", _COUNTS, "1.2M", "parameters"),
    "activation-bytes": Metric(
        "activations", _BYTES, "3MiB", "bytes that convolutions and linear layers write for one image, in float32"
    ),
    LATENCY: Metric("latency", _TIMES, "12ms", "time of one call, predicted from a table of `evoprune latency`"),
}
DEFAULT_METRIC = "macs"
_PATTERN = re.compile(r"(?P<number>[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?|\.[0-9]+)\s*(?P<unit>%|[a-zA-Z]*)")


@dataclass(frozen=True)
class Budget:
    """An upper limit on the cost of the small network.

    Attributes:
        text: What the user wrote.
        value: The limit: a share in (0, 1] of the dense cost, or a number of whole units of ``metric``.
        is_fraction: Whether ``value`` is a share.
        metric: A name of :data:`METRICS`.
    """

    text: str
    value: float
    is_fraction: bool
    metric: str = DEFAULT_METRIC

    def as_fraction(self, cost_dense: int) -> float:
        """Return the limit as a share in (0, 1] of ``cost_dense``.

        Raises:
            BudgetError: An absolute limit is larger than ``cost_dense``.
        """
        if self.is_fraction:
            return self.value
        if self.value > cost_dense:
            raise BudgetError(
                f"a budget must not exceed the cost of the dense network, but {self.text!r} is "
                f"{format_cost(self.value, self.metric)} {self.metric} and the dense network has "
                f"{format_cost(cost_dense, self.metric)}; lower it"
            )
        return self.value / cost_dense


def parse_budget(text: str | float, metric: str = DEFAULT_METRIC) -> Budget:
    """Return the budget of ``metric`` that ``text`` stands for: ``"0.3"``, ``0.3``, ``"30%"``, ``"62M"``, ``"12ms"``.

    Upper and lower case are alike.

    Raises:
        BudgetError: ``text`` has none of these forms, or its number lies outside of the range of its form.
        UnknownNameError: There is no such metric.
    """
    units, forms = _metric(metric).units, _forms(metric)
    written = str(text).strip()
    match = _PATTERN.fullmatch(written)
    if match is None:
        raise BudgetError(f"a budget must be a positive number, but got {written!r}; {forms}")
    number, unit = float(match["number"]), match["unit"].lower()
    if unit in ("", "%"):
        fraction = number / 100 if unit else number
        if not 0 < fraction <= 1:
            raise BudgetError(f"a budget must be a share in (0, 1] of the dense cost, but got {written!r}; {forms}")
        return Budget(written, fraction, is_fraction=True, metric=metric)
    if unit not in units:
        raise BudgetError(
            f"a budget must be a number with a unit of {metric} ({', '.join(units)}), but got {written!r}; {forms}"
        )
    absolute = number * units[unit]
    if not (absolute >= 1 and math.isfinite(absolute)):
        raise BudgetError(f"an absolute budget must be at least 1 and finite, but got {written!r}; {forms}")
    return Budget(written, absolute, is_fraction=False, metric=metric)


def parse_budgets(texts: Sequence[str], metric: str | None = None) -> tuple[Budget, ...]:
    """Return the budgets that ``texts`` stand for: ``"0.3"`` of ``metric``, ``"params=0.4"`` of the metric it names.

    Args:
        texts: At least one.
        metric: What a text without a name counts; None is :data:`DEFAULT_METRIC`.

    Raises:
        BudgetError: A text is malformed, there is none, or a metric has two budgets.
        OptionError: ``metric`` is given but every text names its own.
        UnknownNameError: There is no such metric.
    """
    if not texts:
        raise BudgetError(f"a search needs a budget, but got none; {_forms(metric or DEFAULT_METRIC)}")
    budgets: dict[str, Budget] = {}
    has_bare = False
    for text in texts:
        name, separator, amount = text.rpartition("=")
        has_bare |= not separator
        budget = parse_budget(amount, name.strip() if separator else metric or DEFAULT_METRIC)
        if budget.metric in budgets:
            raise BudgetError(
                f"every metric has one budget, but {budget.metric} has two, {budgets[budget.metric].text!r} and "
                f"{budget.text!r}; leave one out, or name another metric as in params=0.4"
            )
        budgets[budget.metric] = budget
    if metric is not None and not has_bare:
        raise OptionError(
            f"a metric says what a budget without a name counts, but got metric {metric!r} and {', '.join(texts)}; "
            "leave the metric out"
        )
    return tuple(budgets.values())


def budget_texts(budget: Any) -> Any:
    """Return one or several budgets as a tuple of texts: from a text, a number, a list of them, or a mapping by metric.

    Anything else comes back as it is, for the validation to refuse.
    """
    if isinstance(budget, Mapping):
        return tuple(f"{metric}={value}" for metric, value in budget.items())
    values = tuple(budget) if isinstance(budget, Sequence) and not isinstance(budget, str | bytes) else (budget,)
    if any(isinstance(value, bool) or not isinstance(value, str | int | float) for value in values):
        return budget
    return tuple(str(value).strip() for value in values)


def check_reachable(fraction: float, cost_dense: int, cost_range: tuple[int, int], metric: str) -> None:
    """Check that a network of at most ``fraction * cost_dense`` exists; ``cost_range`` is the (smallest, largest) one.

    The smallest network is the smallest one by every metric, so budgets that can be reached one by one can be reached
    together.

    Raises:
        BudgetError: Even the smallest reachable network costs more; the message names the reachable range.
    """
    smallest, largest = cost_range
    limit = whole_limit(fraction, cost_dense)
    if limit < smallest:
        # Rounded up, so that the number in the message is itself a budget that can be reached.
        low = math.ceil(smallest / cost_dense * 1e4) / 1e4
        raise BudgetError(
            f"a budget must lie in the reachable range {low:.4f} to {largest / cost_dense:.4f} of the dense {metric} "
            f"({format_cost(smallest, metric)} to {format_cost(largest, metric)}), but got {fraction:.4g} "
            f"({format_cost(limit, metric)}); raise the budget, or lower `min_channels`, `round_to` or "
            "the number of protected layers (`evoprune inspect` lists them)"
        )


def format_cost(cost: float, metric: str) -> str:
    """Return ``cost``, in whole units of ``metric``, for people: ``62 M``, ``3.1 MB``, ``12.5 ms``."""
    units = _metric(metric).units
    if units is _TIMES:
        name, size = next(((name, size) for name, size in (("s", 1e9), ("ms", 1e6)) if cost >= size), ("us", 1e3))
        return f"{cost / size:.4g} {name}"
    text = format_count(cost)
    return text if units is _COUNTS else f"{text}B" if " " in text else f"{text} B"


def format_count(count: float) -> str:
    """Return ``count`` for people, with four significant digits: ``313.5 M``, ``41.2 k``, ``950``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count:.0f}"


def _metric(name: str) -> Metric:
    if name not in METRICS:
        raise UnknownNameError("metric", name, METRICS)
    return METRICS[name]


def _forms(metric: str) -> str:
    return (
        f'write a fraction in (0, 1] ("0.3"), a percentage in (0, 100] ("30%") or a positive cost '
        f'("{_metric(metric).example}")'
    )
