"""Individuals as DEAP's statistics and halls of fame want them."""

from __future__ import annotations

from bisect import bisect_left
from copy import deepcopy
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
from deap import base, tools

from search_spaces.errors import ObjectiveValueError
from search_spaces.genome import BoolArray, FloatArray, genome_digest


class MinimisedFitness(base.Fitness):
    """One objective, minimised."""

    weights = (-1.0,)


@dataclass(eq=False)
class Individual:
    """A judged genome.

    Attributes:
        genome: ``(n_genes,)`` bits, True = keep.
        digest: Identity of the genome.
        fitness: DEAP fitness; its value is the objective, which is finite.
    """

    genome: BoolArray
    digest: str
    fitness: Any

    @classmethod
    def of(cls, genome: BoolArray, objective: float) -> Individual:
        """Return the individual with this ``genome`` and ``objective``.

        Raises:
            ObjectiveValueError: The objective is NaN or infinite; failed evaluations have no place among the best.
        """
        if not np.isfinite(objective):
            raise ObjectiveValueError(
                f"an individual must have a finite objective, but got {objective}; leave failed evaluations out"
            )
        return cls(genome, genome_digest(genome), MinimisedFitness((float(objective),)))

    @property
    def objective(self) -> float:
        """What the search minimises."""
        return float(self.fitness.values[0])


class BestIndividuals(tools.HallOfFame):
    """A DEAP hall of fame in which, of equally good individuals, the first found stays first.

    DEAP's documentation promises that; its insertion does the opposite, so that a tie would change the winner.
    """

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize, similar=lambda first, second: first.digest == second.digest)

    def show(self, genomes: BoolArray, objectives: FloatArray) -> None:
        """Take what is among the best of ``genomes`` ``(n, n_genes)``; failed ones, not finite, are passed over."""
        self.update([Individual.of(g, v) for g, v in zip(genomes, objectives, strict=True) if np.isfinite(v)])

    def insert(self, item: Individual) -> None:
        """Insert a copy of ``item`` behind all that are at least as good."""
        position = bisect_left(self.keys, item.fitness)
        self.items.insert(len(self) - position, deepcopy(item))
        self.keys.insert(position, item.fitness)


def make_statistics() -> tools.Statistics:
    """Return DEAP statistics over finite objectives: ``min``, ``avg``, ``std``, ``max``."""
    statistics = tools.Statistics(key=attrgetter("objective"))
    for name, function in (("min", np.min), ("avg", np.mean), ("std", np.std), ("max", np.max)):
        statistics.register(name, function)
    return statistics
