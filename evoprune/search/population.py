"""The survivors of a generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evoprune.search.feasibility import diversity
from evoprune.search.individual import Individual
from evoprune.search.state import Arrays, pack_genomes, unpack_genomes
from search_spaces.genome import BoolArray, FloatArray, IntArray


@dataclass(frozen=True)
class Population:
    """Judged genomes, one row each; those of a finished generation are in order, best first.

    Attributes:
        genomes: ``(n, n_genes)``.
        values: ``(n, n_objectives)``, minimised; the judged objective comes first.
        rates: ``(n,)`` the mutation rate that each hands on to its children.
    """

    genomes: BoolArray
    values: FloatArray
    rates: FloatArray

    @classmethod
    def empty(cls, n_genes: int, n_objectives: int) -> Population:
        """Return a population of nobody."""
        return cls(np.empty((0, n_genes), np.bool_), np.empty((0, n_objectives)), np.empty(0))

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.genomes)

    @property
    def objectives(self) -> FloatArray:
        """``(n,)`` judged objectives."""
        return self.values[:, 0]

    @property
    def diversity(self) -> float:
        """Expected share of genes in which two of them differ."""
        return diversity(self.genomes)

    def individuals(self) -> list[Individual]:
        """Return them one by one, as DEAP wants them."""
        return [Individual.of(genome, value) for genome, value in zip(self.genomes, self.objectives, strict=True)]

    def take(self, rows: IntArray) -> Population:
        """Return those in ``rows``, in their order."""
        return Population(self.genomes[rows], self.values[rows], self.rates[rows])

    def joined(self, others: Population) -> Population:
        """Return these, and the ``others`` behind them."""
        return Population(
            np.concatenate([self.genomes, others.genomes]),
            np.concatenate([self.values, others.values]),
            np.concatenate([self.rates, others.rates]),
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return it for a checkpoint."""
        return {
            "genomes": pack_genomes(self.genomes),
            "objective_values": self.values.copy(),
            "mutation_rates": self.rates.copy(),
        }

    @classmethod
    def of_arrays(cls, arrays: Arrays, n_genes: int) -> Population:
        """Return the population whose :meth:`arrays` these are."""
        return cls(
            unpack_genomes(arrays["genomes"], n_genes),
            np.array(arrays["objective_values"], np.float64),
            np.array(arrays["mutation_rates"], np.float64),
        )
