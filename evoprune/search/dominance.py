"""Several objectives at once: dominance under constraints, NSGA-II selection, an archive, and the hypervolume.

Arrays go in and come out; the sorting, crowding and selection in between are DEAP's own. Everything is minimised.

References:
    Deb 2002, A fast and elitist multiobjective genetic algorithm: NSGA-II, Sec. III (sorting, crowding, selection) and
    VI-A (constraint domination).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
from deap import base, tools
from deap.benchmarks import tools as benchmark_tools

from search_spaces.errors import ObjectiveValueError
from search_spaces.genome import BoolArray, FloatArray, IntArray, genome_digest


class ConstrainedFitness(base.Fitness):
    """Two objectives, minimised, and by how much the constraints are violated; 0 where they hold.

    Of two individuals the one of smaller violation dominates, whatever its objectives; of equal violations, the one
    that is nowhere worse and somewhere better.
    """

    weights = (-1.0, -1.0)
    violation = 0.0

    def dominates(self, other: Any, obj: slice = slice(None)) -> bool:
        """Return whether this fitness constraint-dominates ``other``."""
        if self.violation != other.violation:
            return self.violation < other.violation
        return bool(super().dominates(other, obj))

    def __hash__(self) -> int:
        """Return a hash that agrees with equality."""
        return hash((self.wvalues, self.violation))

    def __eq__(self, other: object) -> bool:
        """Return whether objectives and violation are equal."""
        if not isinstance(other, ConstrainedFitness):
            return NotImplemented
        return bool(self.wvalues == other.wvalues and self.violation == other.violation)


@dataclass(eq=False)
class Candidate:
    """What DEAP's selection sees of an individual: its row and its fitness."""

    row: int
    fitness: Any


@dataclass(eq=False)
class FrontMember:
    """A genome that no other is known to dominate.

    Attributes:
        genome: ``(n_genes,)`` bits, True = keep.
        digest: Identity of the genome.
        fitness: DEAP fitness; its values are finite.
    """

    genome: BoolArray
    digest: str
    fitness: Any

    @property
    def values(self) -> tuple[float, float]:
        """Objective and cost."""
        first, second = self.fitness.values
        return float(first), float(second)


def select_nsga2(objective_values: FloatArray, n_survivors: int, *, violations: FloatArray | None = None) -> IntArray:
    """Return the rows that DEAP's ``selNSGA2`` lets survive: whole fronts, and the least crowded of the last one.

    Args:
        objective_values: ``(n, 2)``, minimised. Failed individuals (a value that is not finite) only survive where
            there is no other.
        n_survivors: At most so many rows are returned.
        violations: ``(n,)`` by how much constraints are violated, 0 where they hold; none are by default.
    """
    candidates = _candidates(objective_values, violations)
    return np.array([candidate.row for candidate in tools.selNSGA2(candidates, n_survivors)], np.int64)


def crowded_ranks(objective_values: FloatArray, *, violations: FloatArray | None = None) -> IntArray:
    """Return ranks ``(n,)``, 0 = best, of the crowded comparison: by front first, then by crowding distance.

    Equal ranks mean equal fronts and equal distances; failed individuals come last.

    Args:
        objective_values: ``(n, 2)``, minimised.
        violations: ``(n,)`` as for :func:`select_nsga2`.
    """
    keys = np.full((len(objective_values), 2), np.inf)
    candidates = _candidates(objective_values, violations)
    for rank, front in enumerate(tools.sortNondominated(candidates, len(candidates))):
        tools.emo.assignCrowdingDist(front)
        for candidate in front:
            keys[candidate.row] = rank, -candidate.fitness.crowding_dist
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def hypervolume(objective_values: FloatArray, reference: Sequence[float]) -> float:
    """Return the area between the points and the ``reference`` point that some point dominates; larger is better.

    Args:
        objective_values: ``(n, 2)``, minimised, finite; points that are not better than the reference in both add
            nothing, and 0 comes back where there is no other.
        reference: The worst corner, one number per objective.

    References:
        Zitzler 1999, Multiobjective evolutionary algorithms: a comparative case study and the strength Pareto approach,
        Sec. III-B.
    """
    inside = objective_values[(objective_values < np.asarray(reference)).all(axis=1)]
    if not len(inside):
        return 0.0
    return float(benchmark_tools.hypervolume(_candidates(inside, None), np.asarray(reference, np.float64)))


class ParetoArchive(tools.ParetoFront):
    """A DEAP Pareto front of every genome that no judged one dominates, by objective; the first found stays first.

    Genomes of equal values are all kept.
    """

    def __init__(self) -> None:
        super().__init__(similar=lambda first, second: first.digest == second.digest)

    def insert(self, item: FrontMember) -> None:
        """Insert a copy of ``item`` behind all that are at least as good in the first objective."""
        position = bisect_left(self.keys, item.fitness)
        self.items.insert(len(self) - position, deepcopy(item))
        self.keys.insert(position, item.fitness)

    def add(self, genomes: BoolArray, objective_values: FloatArray) -> None:
        """Show the archive ``genomes`` ``(n, n_genes)`` with their finite values ``(n, 2)``.

        Raises:
            ObjectiveValueError: A value is NaN or infinite.
        """
        if not np.isfinite(objective_values).all():
            raise ObjectiveValueError(
                "an archive takes finite objective values, but some are not; leave failed evaluations out"
            )
        self.update(
            [
                FrontMember(genome, genome_digest(genome), ConstrainedFitness(tuple(map(float, values))))
                for genome, values in zip(genomes, objective_values, strict=True)
            ]
        )

    def genomes(self, n_genes: int) -> BoolArray:
        """Return the genomes ``(n, n_genes)``, in order."""
        return np.array([member.genome for member in self], np.bool_).reshape(-1, n_genes)

    def objective_values(self) -> FloatArray:
        """Return objectives and costs ``(n, 2)``, in order."""
        return np.array([member.values for member in self], np.float64).reshape(-1, 2)


def knee(objective_values: FloatArray) -> int:
    """Return the row of the point that lies farthest below the line between the ends of a front.

    Args:
        objective_values: ``(n, 2)``, n >= 1, mutually non-dominated; both objectives are scaled to the front's range.
            Ties go to the lower row.

    References:
        Das 1999, On characterizing the "knee" of the Pareto curve based on normal-boundary intersection, Sec. 2.
    """
    low = objective_values.min(axis=0)
    span = objective_values.max(axis=0) - low
    scaled = (objective_values - low) / np.where(span > 0, span, 1.0)
    return int(scaled.sum(axis=1).argmin())


def _candidates(objective_values: FloatArray, violations: FloatArray | None) -> list[Candidate]:
    """Return the individuals whose values are finite; all of them where none are."""
    if violations is None:
        violations = np.zeros(len(objective_values))
    finite = np.flatnonzero(np.isfinite(objective_values).all(axis=1))
    rows = finite if len(finite) else np.arange(len(objective_values))
    found = []
    for row in rows.tolist():
        fitness = ConstrainedFitness(tuple(objective_values[row].tolist()))
        fitness.violation = float(violations[row])
        found.append(Candidate(row, fitness))
    return found
