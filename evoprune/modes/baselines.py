"""Modes ``random`` and ``uniform-l1``: what the others are compared with."""

from __future__ import annotations

from evoprune.modes.mode import SearchTask
from evoprune.search import GivenGenomes, RandomSearch, Strategy


def search_at_random(task: SearchTask) -> Strategy:
    """Return random search with as many judged genomes as the other modes.

    Raises:
        OptionError: The space offers nothing to remove.
        BudgetError: A budget cannot be reached.
    """
    return RandomSearch(task.space, task.config, seed=task.options.seed)


def take_uniform_l1(task: SearchTask) -> Strategy:
    """Return the strategy that judges the uniform-L1 genome alone.

    Raises:
        OptionError: The space offers nothing to remove.
    """
    assert task.baseline is not None
    return GivenGenomes(task.space, task.config, seed=task.options.seed, seeds=task.baseline[None])
