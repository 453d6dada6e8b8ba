"""What a search has to beat, as strategies of their own: random genomes at equal evaluations, and given genomes."""

from __future__ import annotations

import numpy as np

from evoprune.search.breeding import Breeder
from evoprune.search.draft import Draft
from evoprune.search.engine import Search
from evoprune.search.initialisation import DistinctGenomes
from evoprune.search.population import Population
from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray, IntArray

_N_ATTEMPTS = 20


class _RandomBreeder(Breeder):
    """Proposes random feasible genomes."""

    def _children(
        self, generation: int, parents: Population, ranks: IntArray, n: int, rng: np.random.Generator
    ) -> Draft:
        """Return ``n`` new genomes that have no parents."""
        del generation, parents, ranks
        return Draft.fresh(self._repairer.sample(n, rng=rng), np.full(n, self._config.mutation_rates[0]))

    def _sift(self, offspring: Draft, n_wanted: int) -> Draft:
        """Return the first ``n_wanted``: nothing is expected of any."""
        return offspring.take(np.arange(len(offspring.genomes)) < n_wanted)

    def _immigrants(self, generation: int, parents: Population) -> BoolArray:
        """Return none: everybody is one."""
        del generation
        return parents.genomes[:0]


class RandomSearch(Search):
    """Random feasible genomes, as many in every generation as a search evaluates; the best of all survive.

    Neither seeds nor scores are used, and no genome depends on another. Arguments as for :class:`Search`.
    """

    breeder_type = _RandomBreeder

    def _initial_genomes(self, rng: np.random.Generator, seeds: BoolArray | None) -> BoolArray:
        del seeds
        found = DistinctGenomes(self.config.population_size)
        for _ in range(_N_ATTEMPTS):
            n_missing = self.config.population_size - len(found)
            if n_missing:
                found.add(self._repairer.sample(n_missing, rng=rng))
        return found.genomes()


class GivenGenomes(Search):
    """Judges the seeds and nothing else; they are taken as they are.

    Raises:
        OptionError: There are no seeds, or one breaks a budget.
    """

    def _initial_genomes(self, rng: np.random.Generator, seeds: BoolArray | None) -> BoolArray:
        del rng
        if seeds is None or not len(seeds):
            raise OptionError("a strategy that judges given genomes needs some, but got none; pass `seeds`")
        if not self._repairer.is_feasible(seeds).all():
            raise OptionError("given genomes must hold the budgets, but one does not; repair it first")
        found = DistinctGenomes(len(seeds))
        found.add(seeds)
        return found.genomes()

    @property
    def n_generations(self) -> int:
        """Return 0: the given genomes are the initial population, and all."""
        return 0

    @property
    def is_finished(self) -> bool:
        """Whether the given genomes are judged."""
        return self.generation >= 0
