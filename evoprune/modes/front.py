"""Mode ``pareto``: one search for a whole front of quality and cost."""

from __future__ import annotations

import dataclasses

from evoprune.modes.mode import SearchTask
from evoprune.search import ParetoSearch, Strategy


def search_front(task: SearchTask) -> Strategy:
    """Return the search of the front of quality and the cost that the first budget counts; the budgets end it.

    A budget of the whole dense network is none: the winner is then the front's knee.

    Raises:
        OptionError: The space offers nothing to remove, or the ladder has an elite rung.
        BudgetError: A budget cannot be reached.
    """
    budgets = {name: value for name, value in task.config.budgets.items() if value is not None}
    metric = next(iter(budgets))
    return ParetoSearch(
        task.space,
        dataclasses.replace(task.whole_config(), budgets=budgets),
        seed=task.options.seed,
        metric=metric,
        has_budget=budgets[metric] < 1.0,
        seeds=task.seeds,
        priors=task.priors,
        local_error=task.local_error,
    )
