"""What the search asks of a space, and repair that leaves the choice of widths to the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from search_spaces.cost import Cost, whole_limit
from search_spaces.errors import BudgetError
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.groups import ChannelGroup
from search_spaces.repair import Lattice


class Space(Protocol):
    """The part of :class:`search_spaces.SearchSpace` that a search uses."""

    @property
    def n_genes(self) -> int:
        """Length of a genome."""

    @property
    def groups(self) -> Sequence[ChannelGroup]:
        """Channel groups, in order of their genes."""

    @property
    def lattice(self) -> Lattice:
        """Kept counts that each group may take."""

    def macs(self, genomes: BoolArray) -> IntArray:
        """Return multiply-adds ``(n,)``."""

    def n_params(self, genomes: BoolArray) -> IntArray:
        """Return parameters ``(n,)``."""

    @property
    def costs(self) -> Mapping[str, Cost]:
        """Every cost that may be budgeted, by metric."""

    def cost(self, metric: str, genomes: BoolArray) -> IntArray:
        """Return what ``genomes`` cost in whole units of ``metric``, ``(n,)``."""

    def cost_range(self, metric: str) -> tuple[int, int]:
        """Return what the smallest and the whole network cost."""

    def repair(
        self,
        genomes: BoolArray,
        *,
        rng: np.random.Generator,
        budgets: Mapping[str, float],
        scores: FloatArray | None = None,
    ) -> BoolArray:
        """Return feasible genomes near ``genomes``; budgets are shares of the dense costs by metric."""

    def sample(self, *, rng: np.random.Generator, n: int, budgets: Mapping[str, float]) -> BoolArray:
        """Return ``n`` random feasible genomes, diverse in their widths."""


class Repairer:
    """Brings genomes under their budgets, by a preference for genes that ignores what genes cost.

    The space's own repair drops the least score *per unit of cost*, which is right for scores that measure a gain for
    the whole network. Here widths are what evolves: scores are multiplied by the cost, so that the division cancels and
    groups shrink alike, whatever their genes cost.

    Args:
        space: The search space.
        budgets: Shares in (0, 1] of the dense costs by metric; None or absent where there is none.
        is_optional: Whether there may be no budget at all: genomes then stay as they are but for the groups' minima.

    Raises:
        BudgetError: There is no budget, an unknown one, or one out of its range.
    """

    def __init__(self, space: Space, budgets: Mapping[str, float | None], *, is_optional: bool = False) -> None:
        self.budgets = {name: float(value) for name, value in budgets.items() if value is not None}
        unknown = self.budgets.keys() - space.costs.keys()
        is_missing = not self.budgets and not is_optional
        if unknown or is_missing or not all(0 < value <= 1 for value in self.budgets.values()):
            raise BudgetError(
                f"a search needs budgets for some of {', '.join(space.costs)}, each in (0, 1] of the dense cost, but "
                f"got {dict(budgets)}; give for instance {{'macs': 0.3}}"
            )
        self.lattice = space.lattice
        self._space = space
        dense = {name: space.cost_range(name)[1] for name in self.budgets}
        self._limits = {name: max(whole_limit(value, dense[name]), 1) for name, value in self.budgets.items()}
        self._gene_costs = self._costs_per_gene()

    def __call__(
        self, genomes: BoolArray, *, rng: np.random.Generator, preference: FloatArray | None = None
    ) -> BoolArray:
        """Return feasible genomes ``(n, n_genes)``.

        Args:
            genomes: ``(n, n_genes)``.
            rng: Breaks ties; without ``preference`` it decides alone.
            preference: ``(n, n_genes)`` or ``(n_genes,)``, larger = kept or revived first.
        """
        scores = None
        if preference is not None:
            scores = (preference - preference.min(initial=0.0) + 1.0) * self._gene_costs
        return self._space.repair(genomes, budgets=self.budgets, rng=rng, scores=scores)

    def sample(self, n_individuals: int, *, rng: np.random.Generator) -> BoolArray:
        """Return ``(n_individuals, n_genes)`` random feasible genomes."""
        return self._space.sample(rng=rng, n=n_individuals, budgets=self.budgets)

    def is_feasible(self, genomes: BoolArray) -> BoolArray:
        """Return, per row, whether all budgets hold."""
        return self.load(genomes) <= 1.0

    def load(self, genomes: BoolArray) -> FloatArray:
        """Return, per row, the largest share of a budget that is used; at most 1 where all hold."""
        loads = [self._space.cost(name, genomes) / limit for name, limit in self._limits.items()]
        return np.max(loads, axis=0) if loads else np.zeros(len(genomes))

    def _costs_per_gene(self) -> FloatArray:
        """Return ``(n_genes,)`` shares of the budgets that one gene of the dense network costs."""
        lattice = self.lattice
        per_group = np.zeros(len(lattice.sizes))
        for name, limit in self._limits.items():
            per_group += self._space.costs[name].gene_prices(lattice.sizes, lattice.min_keep, lattice.step) / limit
        return np.repeat(np.maximum(per_group, 1e-30), lattice.sizes)


def diversity(genomes: BoolArray) -> float:
    """Return the expected share of genes in which two individuals of ``genomes`` ``(n, n_genes)`` differ."""
    share = genomes.mean(axis=0)
    return float((2 * share * (1 - share)).mean())
