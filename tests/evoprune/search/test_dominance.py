"""Sorting, crowding, selection and hypervolume against definitions, closed forms and DEAP itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from deap import base, tools
from hypothesis import given, settings
from hypothesis import strategies as st

from evoprune.search.dominance import (
    ConstrainedFitness,
    ParetoArchive,
    crowded_ranks,
    hypervolume,
    knee,
    select_nsga2,
)
from search_spaces.errors import ObjectiveValueError
from search_spaces.genome import FloatArray, genome_digest

#: Few different numbers, so that ties and duplicates are common.
points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=24).map(
    lambda rows: np.array(rows, np.float64)
)


def dominates(first: FloatArray, second: FloatArray) -> bool:
    return bool((first <= second).all() and (first < second).any())


def fronts_by_definition(values: FloatArray) -> list[set[int]]:
    left, fronts = set(range(len(values))), []
    while left:
        front = {i for i in left if not any(dominates(values[j], values[i]) for j in left)}
        fronts.append(front)
        left -= front
    return fronts


class DeapMinimised(base.Fitness):
    """DEAP's own fitness, no constraints."""

    weights = (-1.0, -1.0)


def deap_individuals(values: FloatArray) -> list[Any]:
    class Row(int):
        fitness: Any

    rows = [Row(i) for i in range(len(values))]
    for row, pair in zip(rows, values, strict=True):
        row.fitness = DeapMinimised(tuple(pair))
    return rows


@settings(deadline=None)
@given(points, st.integers(1, 24))
def test_selection_is_that_of_deap(values: FloatArray, n: int) -> None:
    expected = [int(row) for row in tools.selNSGA2(deap_individuals(values), n)]
    assert select_nsga2(values, n).tolist() == expected


@settings(deadline=None)
@given(points)
def test_ranks_follow_fronts_and_then_crowding(values: FloatArray) -> None:
    ranks = crowded_ranks(values)
    individuals = deap_individuals(values)
    place = {}
    for number, front in enumerate(tools.sortNondominated(individuals, len(individuals))):
        assert {int(row) for row in front} == fronts_by_definition(values)[number]
        tools.emo.assignCrowdingDist(front)
        place.update({int(row): (number, -row.fitness.crowding_dist) for row in front})
    for first in range(len(values)):
        for second in range(len(values)):
            assert (ranks[first] < ranks[second]) == (place[first] < place[second])
    assert ranks.min() == 0


@settings(deadline=None)
@given(points, st.integers(0, 2**32))
def test_a_smaller_violation_dominates_whatever_the_objectives(values: FloatArray, seed: int) -> None:
    violations = np.random.default_rng(seed).integers(0, 3, len(values)).astype(np.float64)
    order = select_nsga2(values, len(values), violations=violations)
    assert (np.diff(violations[order]) >= 0).all()
    ranks = crowded_ranks(values, violations=violations)
    for level in set(violations.tolist()):
        rows = np.flatnonzero(violations == level)
        alone = crowded_ranks(values[rows])
        assert (np.sign(ranks[rows][:, None] - ranks[rows]) == np.sign(alone[:, None] - alone)).all()


def test_two_fitnesses_of_equal_values_differ_by_their_violation() -> None:
    feasible, infeasible = ConstrainedFitness((1.0, 2.0)), ConstrainedFitness((1.0, 2.0))
    assert feasible == infeasible
    infeasible.violation = 0.1
    assert feasible != infeasible
    assert feasible.dominates(infeasible)
    assert not infeasible.dominates(feasible)


def test_failures_survive_only_where_there_is_nothing_else() -> None:
    values = np.array([[np.inf, 0.1], [2.0, 0.5], [np.nan, 0.2], [1.0, 0.9]])
    assert select_nsga2(values, 4).tolist() == [1, 3]
    assert crowded_ranks(values).argsort(kind="stable").tolist()[:2] == [1, 3]
    assert len(select_nsga2(values[[0]], 3)) == 1


@settings(deadline=None)
@given(points)
def test_hypervolume_in_two_dimensions_is_a_sum_of_rectangles(values: FloatArray) -> None:
    reference = (5.0, 5.5)
    area, ceiling = 0.0, reference[1]
    for first, second in sorted(map(tuple, values.tolist())):
        if first < reference[0] and second < ceiling:
            area += (reference[0] - first) * (ceiling - second)
            ceiling = second
    assert hypervolume(values, reference) == pytest.approx(area, abs=1e-12)


def test_hypervolume_of_a_staircase_has_a_closed_form() -> None:
    n = 10
    steps = np.arange(n)
    staircase = np.column_stack([steps, n - 1 - steps]) / n
    assert hypervolume(staircase, (1.0, 1.0)) == pytest.approx((n + 1) / (2 * n))  # n (n + 1) / 2 squares of side 1 / n
    assert hypervolume(np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]]), (1.0, 1.0)) == 0.0


@settings(deadline=None)
@given(points, st.integers(1, 5), st.integers(0, 2**32))
def test_the_archive_holds_everything_that_is_not_dominated(values: FloatArray, n_parts: int, seed: int) -> None:
    genomes = np.random.default_rng(seed).random((len(values), 64)) < 0.5
    archive = ParetoArchive()
    for part in np.array_split(np.arange(len(values)), n_parts):
        archive.add(genomes[part], values[part])
        archive.add(genomes[part], values[part])  # what is known already does not come twice
    expected = {genome_digest(genomes[row]) for row in fronts_by_definition(values)[0]}
    assert {member.digest for member in archive} == expected
    kept = archive.objective_values()
    assert (np.diff(kept[:, 0]) >= 0).all()
    again = ParetoArchive()
    again.add(archive.genomes(64), kept)
    assert [member.digest for member in again] == [member.digest for member in archive]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_failure_enters_the_archive(value: float) -> None:
    with pytest.raises(ObjectiveValueError, match="takes finite objective values"):
        ParetoArchive().add(np.ones((1, 3), np.bool_), np.array([[value, 0.5]]))


def test_the_knee_bends_most() -> None:
    assert knee(np.array([[10.0, 0.0], [1.0, 0.1], [0.0, 1.0]])) == 1
    assert knee(np.array([[3.0, 0.5]])) == 0
