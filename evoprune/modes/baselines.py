"""Modes ``random`` and ``uniform-l1``: what the others are compared with."""

from __future__ import annotations

import dataclasses

from evoprune.modes.mode import SearchTask
from evoprune.search import GivenGenomes, RandomSearch, Strategy


def search_at_random(task: SearchTask) -> Strategy:
    """Return random search with as many judged genomes as the other modes; nothing is screened.

    Raises:
        OptionError: The space offers nothing to remove.
        BudgetError: A budget cannot be reached.
    """
    ladder = dataclasses.replace(task.config.ladder, screen=None)
    config = dataclasses.replace(task.config, ladder=ladder)
    return RandomSearch(task.space, config, seed=task.options.seed)


def take_uniform_l1(task: SearchTask) -> Strategy:
    """Return the strategy that judges the uniform-L1 genome alone.

    Raises:
        OptionError: The space offers nothing to remove.
    """
    assert task.baseline is not None
    ladder = dataclasses.replace(task.config.ladder, screen=None)
    config = dataclasses.replace(task.config, ladder=ladder)
    return GivenGenomes(task.space, config, seed=task.options.seed, seeds=task.baseline[None])
