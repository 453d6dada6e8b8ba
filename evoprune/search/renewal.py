"""When a population has lost its diversity, and who brings it back."""

from __future__ import annotations

import numpy as np
from deap import base

from evoprune.search.config import SearchConfig
from evoprune.search.feasibility import Repairer
from evoprune.search.population import Population
from search_spaces.genome import BoolArray


class Renewal:
    """Watches diversity, and makes immigrants.

    Args:
        toolbox: Its ``mate_groups`` crosses immigrants.
        repairer: Samples and repairs.
        config: Thresholds and shares.

    Attributes:
        initial_diversity: Of the first population, or of that which replaced it; what loss is measured by.
    """

    def __init__(self, toolbox: base.Toolbox, repairer: Repairer, config: SearchConfig) -> None:
        self._toolbox = toolbox
        self._repairer = repairer
        self._config = config
        self.initial_diversity = 0.0

    def begin(self, population: Population) -> None:
        """Measure the loss from ``population`` on, which is a fresh one."""
        self.initial_diversity = population.diversity

    def is_due(self, population: Population) -> bool:
        """Return whether hardly any diversity is left."""
        return population.diversity < self._config.min_diversity * self.initial_diversity

    def immigrants(self, population: Population, *, rng: np.random.Generator) -> BoolArray:
        """Return new feasible genomes where they are due: random ones, every other one crossed with a survivor.

        Known ones may be among them. Nothing is drawn where none are due.
        """
        n = round(self._config.immigrant_share * self._config.n_judged_offspring)
        if n == 0 or not self.is_due(population):
            return population.genomes[:0]
        fresh = self._repairer.sample(n, rng=rng)
        hosts = population.genomes[rng.integers(len(population), size=n)]
        crossed = self._toolbox.mate_groups(fresh, hosts, rng=rng)
        is_crossed = (np.arange(n) % 2 == 1)[:, None]
        return self._repairer(np.where(is_crossed, crossed, fresh), rng=rng)
