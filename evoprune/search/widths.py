"""The width phase: in the first generations only the numbers of kept channels evolve, and which they are is given."""

from __future__ import annotations

import numpy as np

from evoprune.search.feasibility import Repairer
from evoprune.search.initialisation import DistinctGenomes
from evoprune.search.operators import as_widths
from search_spaces.genome import BoolArray, FloatArray

_N_ATTEMPTS = 12


class WidthPhase:
    """The generations in which every group keeps the first channels of a fixed order.

    Args:
        n_generations: So many generations, and the initial population, evolve widths alone; 0 is without the phase.
        order: ``(n_genes,)``, larger = kept first.
        repairer: Budgets and groups.
    """

    def __init__(self, n_generations: int, order: FloatArray, repairer: Repairer) -> None:
        self._n_generations = n_generations
        self._order = order
        self._repairer = repairer

    def covers(self, generation: int) -> bool:
        """Return whether the genomes of ``generation`` differ in their widths alone."""
        return self._n_generations > 0 and generation <= self._n_generations

    def express(self, genomes: BoolArray, generation: int) -> BoolArray:
        """Return ``genomes`` ``(n, n_genes)`` as ``generation`` may hold them: in the phase as widths."""
        return as_widths(genomes, self._order, self._repairer.lattice) if self.covers(generation) else genomes

    def distinct(self, genomes: BoolArray, generation: int, *, rng: np.random.Generator) -> BoolArray:
        """Return distinct ``genomes`` ``(n, n_genes)`` as :meth:`express`, with random ones in place of equal widths.

        In a space that holds fewer widths there are fewer.
        """
        if not self.covers(generation):
            return genomes
        found = DistinctGenomes(len(genomes))
        found.add(self.express(genomes, generation))
        for _ in range(_N_ATTEMPTS):
            n_missing = len(genomes) - len(found)
            if n_missing:
                found.add(self.express(self._repairer.sample(n_missing, rng=rng), generation))
        return found.genomes()
