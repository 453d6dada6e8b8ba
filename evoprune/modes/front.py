"""Mode ``pareto``: one search for a whole front of quality and cost."""

from __future__ import annotations

import dataclasses

import numpy as np

from evoprune.modes.mode import SearchTask
from evoprune.search import ParetoSearch, Strategy, make_generator
from fitness.seeding import width_seeds
from search_spaces.genome import BoolArray


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
        seeds=_seeds(task, metric, budgets),
        priors=task.priors,
        local_error=task.local_error,
    )


def _seeds(task: SearchTask, metric: str, budgets: dict[str, float]) -> BoolArray | None:
    """Return as many seeds as the task has, of evenly spread costs by error per cost, where scores are layer errors."""
    scores = next((prior.scores for prior in task.priors if prior.name == "two-step"), None)
    if scores is None or task.seeds is None or not len(task.seeds):
        return None
    smallest, dense = task.space.cost_range(metric)
    least, n = (smallest + 0.5) / dense, len(task.seeds)
    rng = make_generator(task.options.seed, "knowledge", 1)
    # The smallest network is the population's; a seed there would be the same.
    levels = [min(least + (budgets[metric] - least) * (i + 1) / n, budgets[metric]) for i in range(n)]
    seeds = [width_seeds(task.space, scores, rng=rng, n=1, budgets={**budgets, metric: level}) for level in levels]
    return np.concatenate(seeds)
