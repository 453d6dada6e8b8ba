"""Mode ``pareto``: one search for a whole front of quality and cost."""

from __future__ import annotations

import numpy as np

from evoprune.modes.mode import SearchTask
from evoprune.search import ParetoSearch, Strategy, make_generator
from fitness.seeding import width_seeds
from search_spaces.genome import BoolArray


def search_front(task: SearchTask) -> Strategy:
    """Return the search of the front of quality and ``options.metric``, which the budget ends.

    A budget of the whole dense network is none: the winner is then the front's knee.

    Raises:
        OptionError: The space offers nothing to remove, or the ladder has an elite rung.
        BudgetError: A budget cannot be reached.
    """
    metric = task.options.metric
    return ParetoSearch(
        task.space,
        task.config,
        seed=task.options.seed,
        metric=metric,
        has_budget=float(task.config.budgets[metric] or 1.0) < 1.0,
        seeds=_seeds(task),
        priors=task.priors,
    )


def _seeds(task: SearchTask) -> BoolArray | None:
    """Return genomes of evenly spread costs by error per cost, where the scores are layer errors."""
    if task.seeds is None or task.channel_scores is None or not len(task.seeds):
        return None
    metric, most = task.options.metric, float(task.config.budgets[task.options.metric] or 1.0)
    space, n = task.space, len(task.seeds)
    smallest, dense = space.macs_range if metric == "macs" else space.n_params_range
    least = smallest / dense
    # The smallest network is the population's; a seed there would be the same.
    levels = least + (most - least) * np.arange(1, n + 1) / n
    rng = make_generator(task.options.seed, "knowledge", 1)
    seeds = [
        width_seeds(space, task.channel_scores, rng=rng, n=1, **{f"{metric}_budget": float(min(level, most))})
        for level in levels
    ]
    return np.concatenate(seeds)
