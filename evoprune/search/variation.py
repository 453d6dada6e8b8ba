"""How children come about: parents are selected and crossed, the result is mutated and repaired.

Which operator makes a child, and which prior guides it, is drawn; both are drawn more often if their children survive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from deap import base

from evoprune.search.adaptation import SuccessShares
from evoprune.search.config import SearchConfig
from evoprune.search.draft import Draft
from evoprune.search.feasibility import Repairer
from evoprune.search.operators import WIDTH_KEEPING
from evoprune.search.population import Population
from evoprune.search.priors import PriorMixture
from search_spaces.errors import UnknownNameError
from search_spaces.genome import BoolArray, FloatArray, IntArray

_LEARNING_RATE = 0.3  # sigma of the log-normal factor by which a child's mutation rate differs from its parent's


class _Operators:
    """The operators ``<kind>_<name>`` of a toolbox, drawn by shares that follow their success."""

    def __init__(self, toolbox: base.Toolbox, kind: str, weights: Mapping[str, float], *, is_adaptive: bool) -> None:
        self._toolbox = toolbox
        self._kind = kind
        self.shares = SuccessShares(weights, is_adaptive=is_adaptive)

    def draw(self, n: int, *, rng: np.random.Generator, without: Sequence[str] = ()) -> IntArray:
        """Return ``(n,)`` indices of operators, those in ``without`` left out where there are others.

        Raises:
            UnknownNameError: An operator is not on the toolbox.
        """
        prefix = f"{self._kind}_"
        known = [name.removeprefix(prefix) for name in vars(self._toolbox) if name.startswith(prefix)]
        for name in self.shares.names:
            if name not in known:
                raise UnknownNameError(f"operator for `{self._kind}`", name, known)
        names = [name for name in self.shares.names if name not in without]
        return rng.choice(len(self.shares.names), size=n, p=self.shares.shares(names)).astype(np.int64)

    def numbered(self) -> list[tuple[int, Any]]:
        """Return every operator with its index."""
        return [(index, getattr(self._toolbox, f"{self._kind}_{name}")) for index, name in enumerate(self.shares.names)]


class Variation:
    """Makes children, and learns from their survival.

    Args:
        toolbox: Selection and operators; asked anew for every generation, so that others may be registered.
        repairer: Makes children feasible.
        mixture: The priors that guide them.
        config: Frequencies and rates.
    """

    def __init__(self, toolbox: base.Toolbox, repairer: Repairer, mixture: PriorMixture, config: SearchConfig) -> None:
        self._toolbox = toolbox
        self._repairer = repairer
        self._mixture = mixture
        self._config = config
        is_adaptive = config.adapt_operators
        self._mutations = _Operators(toolbox, "mutate", config.mutations, is_adaptive=is_adaptive)
        self._crossovers = _Operators(toolbox, "mate", config.crossovers, is_adaptive=is_adaptive)

    def children(
        self, parents: Population, ranks: IntArray, n: int, *, rng: np.random.Generator, widths_alone: bool = False
    ) -> Draft:
        """Return ``n`` repaired children of selected ``parents``.

        Args:
            parents: At least one.
            ranks: ``(n_parents,)``, 0 = best.
            n: How many; equal ones and known ones among them.
            rng: Source of randomness.
            widths_alone: Whether mutations that keep all widths are of no use.

        Raises:
            UnknownNameError: An operator is not on the toolbox.
        """
        first = self._toolbox.select(ranks, n, rng=rng)
        second = self._toolbox.select(ranks, n, rng=rng)
        rates = self._varied_rates(parents.rates[first], rng)
        guides = self._mixture.draw(n, rng=rng)
        crossed, crossovers = self._cross(parents.genomes[first], parents.genomes[second], rng)
        mutations = self._mutations.draw(n, rng=rng, without=WIDTH_KEEPING if widths_alone else ())
        mutated = self._mutate(crossed, mutations, rates, guides, rng)
        # Mutated genes are what is being tried: they are repaired last.
        preference = self._preference(guides, rng) + 2.0 * (mutated & ~crossed) - 2.0 * (crossed & ~mutated)
        children = self._repairer(mutated, rng=rng, preference=preference)
        return Draft(children, rates, guides, parents.objectives[first], mutations, crossovers)

    def learn(self, draft: Draft, is_survivor: BoolArray, objectives: FloatArray) -> None:
        """Credit operators and priors with the judged children of ``draft``.

        Args:
            draft: One generation.
            is_survivor: ``(n,)`` whether each is in the next population.
            objectives: ``(n,)`` judged objectives.
        """
        mutations_made, crossovers_made = draft.made
        self._mutations.shares.learn(mutations_made, draft.mutations[is_survivor])
        self._crossovers.shares.learn(crossovers_made, draft.crossovers[is_survivor])
        self._mixture.learn(draft.guides, is_survivor, objectives < draft.parent_objectives)

    def _varied_rates(self, rates: FloatArray, rng: np.random.Generator) -> FloatArray:
        return np.clip(rates * np.exp(rng.normal(0, _LEARNING_RATE, len(rates))), *self._config.mutation_rates)

    def _cross(self, first: BoolArray, second: BoolArray, rng: np.random.Generator) -> tuple[BoolArray, IntArray]:
        """Return children of two parents, or copies of the ``first``, and the crossover of each, -1 for copies."""
        n = len(first)
        has_two_parents = rng.random(n) < self._config.p_crossover
        crossovers = np.where(has_two_parents, self._crossovers.draw(n, rng=rng), -1)
        crossed = first.copy()
        for number, operator in self._crossovers.numbered():
            rows = np.flatnonzero(crossovers == number)
            crossed[rows] = operator(first[rows], second[rows], rng=rng)
        return crossed, crossovers

    def _mutate(
        self, genomes: BoolArray, mutations: IntArray, rates: FloatArray, guides: IntArray, rng: np.random.Generator
    ) -> BoolArray:
        """Return ``genomes`` each changed by its mutation, which follows its guide."""
        mutated = genomes.copy()
        for number, operator in self._mutations.numbered():
            for index, guide in enumerate(self._mixture.guides):
                rows = np.flatnonzero((mutations == number) & (guides == index))
                if len(rows):
                    mutated[rows] = operator(genomes[rows], rates=rates[rows], rng=rng, guide=guide)
        return mutated

    def _preference(self, guides: IntArray, rng: np.random.Generator) -> FloatArray:
        """Return what repair keeps first, in [0, 1]: at random, for guided rows blended with what their prior wants."""
        preference = rng.random((len(guides), int(self._repairer.lattice.sizes.sum())))
        weight = rng.random(len(guides)) * (rng.random(len(guides)) < self._config.p_guided)
        for index, guide in enumerate(self._mixture.guides):
            if guide.order is not None:
                rows = np.flatnonzero(guides == index)
                share = weight[rows, None]
                preference[rows] = share * guide.order + (1 - share) * preference[rows]
        return preference

    # ------------------------------------------------------------------ what was learnt

    def row(self) -> dict[str, float | int]:
        """Return the share of every operator and prior, for a logbook."""
        return {
            **self._mutations.shares.row("share_mutate"),
            **self._crossovers.shares.row("share_mate"),
            **self._mixture.row(),
        }

    def state(self) -> dict[str, Any]:
        """Return what was learnt of the operators, as JSON values; the mixture keeps its own."""
        return {
            "mutation_shares": self._mutations.shares.state(),
            "crossover_shares": self._crossovers.shares.state(),
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go back to what :meth:`state` returned."""
        self._mutations.shares.restore(data["mutation_shares"])
        self._crossovers.shares.restore(data["crossover_shares"])
