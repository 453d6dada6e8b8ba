"""Mode ``global``: one search over all genes."""

from __future__ import annotations

from evoprune.modes.mode import SearchTask
from evoprune.search import Search, Strategy


def search_whole(task: SearchTask) -> Strategy:
    """Return the search of all genes at once.

    Raises:
        OptionError: The space offers nothing to remove.
        BudgetError: A budget cannot be reached.
    """
    return Search(
        task.space,
        task.whole_config(),
        seed=task.options.seed,
        seeds=task.seeds,
        priors=task.priors,
        local_error=task.local_error,
    )
