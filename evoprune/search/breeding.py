"""Who is judged next: the initial population, then offspring and immigrants, or a population that starts afresh."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from deap import base

from evoprune.search.config import SearchConfig
from evoprune.search.draft import Draft
from evoprune.search.feasibility import Repairer
from evoprune.search.memory import Memory
from evoprune.search.population import Population
from evoprune.search.priors import PriorMixture
from evoprune.search.randomness import make_generator
from evoprune.search.renewal import Renewal
from evoprune.search.variation import Variation
from evoprune.search.widths import WidthPhase
from search_spaces.genome import BoolArray, FloatArray, IntArray, genome_digest

_N_ATTEMPTS = 12
#: Genomes, ``(n, n_genes)``, of a population that begins with given ones, if any.
InitialGenomes: TypeAlias = Callable[[np.random.Generator, BoolArray | None], BoolArray]
#: Of genomes ``(n, n_genes)`` whose first ``m`` have objectives ``(m,)``, at most so many rows worth going on with.
Promising: TypeAlias = Callable[[BoolArray, FloatArray, int], IntArray]


class Breeder:
    """Proposes the individuals of each generation; nothing that was evaluated is proposed again.

    Args:
        config: Sizes and rates.
        repairer: Budgets and groups.
        mixture: The priors.
        toolbox: Selection and operators.
        memory: What was evaluated.
        initial_genomes: Returns the genomes of a population that begins with given ones.
        promising: Tells which offspring to keep by what a linear model expects of them.
        seed: Master seed; every generation draws from streams of its own.

    Attributes:
        variation: Makes the children.
        renewal: Watches diversity.
    """

    def __init__(
        self,
        config: SearchConfig,
        repairer: Repairer,
        mixture: PriorMixture,
        toolbox: base.Toolbox,
        memory: Memory,
        initial_genomes: InitialGenomes,
        promising: Promising,
        *,
        seed: int,
    ) -> None:
        self.variation = Variation(toolbox, repairer, mixture, config)
        self.renewal = Renewal(toolbox, repairer, config)
        self._config = config
        self._repairer = repairer
        self._memory = memory
        self._initial_genomes = initial_genomes
        self._promising = promising
        self._seed = seed
        n_genes, orders = int(repairer.lattice.sizes.sum()), mixture.orders
        order = make_generator(seed, "order").random(n_genes) if orders is None else orders[0]
        self._widths = WidthPhase(config.width_generations, order, repairer)

    def first(self, seeds: BoolArray | None) -> Draft:
        """Return the initial population, which begins with ``seeds``; mutation rates are drawn log-uniformly."""
        rng = make_generator(self._seed, "initialisation")
        genomes = self._widths.distinct(self._initial_genomes(rng, seeds), 0, rng=rng)
        low, high = np.log(self._config.mutation_rates)
        return Draft.fresh(genomes, np.exp(rng.uniform(low, high, len(genomes))))

    def next(self, generation: int, parents: Population, ranks: IntArray) -> Draft:
        """Return offspring and immigrants; where the population is to be replaced, a fresh one instead.

        Args:
            generation: The one in the making.
            parents: The population.
            ranks: ``(n_parents,)``, 0 = best.
        """
        config = self._config
        if config.restart and self.renewal.is_due(parents):
            draft = self._fresh_population(generation)
            if len(draft.genomes) > 1:
                return draft
        immigrants = self._immigrants(generation, parents)
        n_wanted = config.n_bred(len(immigrants))
        if config.ladder.screens:
            n_wanted *= config.ladder.screen_factor
        taken = {genome_digest(genome) for genome in immigrants}
        offspring = self._offspring(generation, parents, ranks, n_wanted, taken)
        draft = Draft.join([self._sift(offspring, n_wanted), self._newcomers(immigrants)])
        draft.n_immigrants = len(immigrants)
        draft.made = (offspring.mutations, offspring.crossovers)
        return draft

    def _fresh_population(self, generation: int) -> Draft:
        """Return a population that owes nothing to any: as the first, with other random numbers, and all new."""
        rng = make_generator(self._seed, "restart", generation)
        genomes = self._widths.distinct(self._initial_genomes(rng, None), generation, rng=rng)
        draft = self._newcomers(genomes[self._memory.is_new(genomes, set())])
        draft.n_immigrants, draft.is_restart = len(draft.genomes), True
        return draft

    def _newcomers(self, genomes: BoolArray) -> Draft:
        """Return ``genomes`` that nothing bred, with a middling mutation rate."""
        return Draft.fresh(genomes, np.full(len(genomes), np.sqrt(np.prod(self._config.mutation_rates))))

    def _offspring(
        self, generation: int, parents: Population, ranks: IntArray, n_wanted: int, taken: set[str]
    ) -> Draft:
        """Return new children: for each wanted one as many as the surrogate is to choose from, less the known ones.

        While fewer than ``n_wanted`` are new, more are bred. In a space that is nearly exhausted there may be fewer, or
        none.
        """
        rng = make_generator(self._seed, "variation", generation)
        parts: list[Draft] = []
        n_missing = n_wanted * self._config.surrogate_factor
        for _ in range(_N_ATTEMPTS):
            if n_missing <= 0:
                break
            part = self._children(generation, parents, ranks, n_missing, rng)
            parts.append(part.take(self._memory.is_new(part.genomes, taken)))
            n_missing = n_wanted - sum(len(part.genomes) for part in parts)
        return Draft.join(parts) if parts else self._newcomers(parents.genomes[:0])

    # ------------------------------------------------------------------ what another way of breeding replaces

    def _immigrants(self, generation: int, parents: Population) -> BoolArray:
        """Return new genomes that bring diversity back where it is gone."""
        rng = make_generator(self._seed, "immigration", generation)
        genomes = self._widths.express(self.renewal.immigrants(parents, rng=rng), generation)
        return genomes[self._memory.is_new(genomes, set())]

    def _children(
        self, generation: int, parents: Population, ranks: IntArray, n: int, rng: np.random.Generator
    ) -> Draft:
        """Return ``n`` feasible children, known ones among them."""
        widths_alone = self._widths.covers(generation)
        draft = self.variation.children(parents, ranks, n, rng=rng, widths_alone=widths_alone)
        draft.genomes = self._widths.express(draft.genomes, generation)
        return draft

    def _sift(self, offspring: Draft, n_wanted: int) -> Draft:
        """Return the ``n_wanted`` offspring of which the surrogate expects most, in their order."""
        if len(offspring.genomes) <= n_wanted:
            return offspring
        expected = self._memory.expected_objectives(offspring.genomes)
        return offspring.take(np.sort(self._promising(offspring.genomes, expected, n_wanted)))
