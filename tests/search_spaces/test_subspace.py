"""A part of a space: costs, limits and repair are those of the whole network with the background filled in."""

from __future__ import annotations

import numpy as np
import pytest

from search_spaces import SearchSpace, SubSpace
from search_spaces.errors import BudgetError, GenomeShapeError, OptionError
from tests.search_spaces.patterns import PATTERNS
from tests.search_spaces.spaces import random_genomes, traced


def part_of(space: SearchSpace, groups: list[int], seed: int = 0) -> SubSpace:
    return SubSpace(space, np.array(groups, np.int64), random_genomes(space, 2, seed)[1])


@pytest.mark.parametrize("name", [name for name in PATTERNS if len(traced(name)[2].groups) > 1])
def test_costs_and_marginals_are_those_of_the_whole(name: str) -> None:
    space = traced(name)[2]
    part = part_of(space, list(range(0, len(space.groups), 2)))
    genomes = part.sample(rng=np.random.default_rng(1), n=6, budgets={})
    whole = part.embed(genomes)
    assert part.macs(genomes).tolist() == space.macs(whole).tolist()
    assert part.n_params(genomes).tolist() == space.n_params(whole).tolist()
    np.testing.assert_array_equal(part.extract(whole), genomes)
    for metric in space.costs:
        assert part.cost(metric, genomes).tolist() == space.cost(metric, whole).tolist()
        assert part.cost_range(metric)[1] == space.cost_range(metric)[1]
    closed = np.setdiff1d(np.arange(space.n_genes), part.open_genes)
    assert (whole[:, closed] == part.background[closed]).all()
    counts = space.kept_counts(whole)
    budgets = dict.fromkeys(space.costs, 1.0)
    for limit, reference in zip(part.limits(budgets), space.limits(budgets), strict=True):
        assert limit.cost(counts[:, part.open_groups]).tolist() == reference.cost(counts).tolist()
        rise = limit.cost.marginals(counts[:, part.open_groups], np.full(len(part.open_groups), -1))
        expected = reference.cost.marginals(counts, np.full(len(space.groups), -1))[:, part.open_groups]
        np.testing.assert_allclose(rise, expected)


def test_repair_meets_the_budget_of_the_whole_network_within_one_gene() -> None:
    space = traced("residual")[2]
    part = SubSpace(space, np.arange(1, len(space.groups)), space.all_ones()[0])
    genomes = part.sample(rng=np.random.default_rng(2), n=20, budgets={"macs": 0.6})
    macs = part.macs(genomes)
    assert (macs <= 0.6 * space.macs_dense).all()
    for genome, cost in zip(genomes, macs, strict=True):
        dropped = np.flatnonzero(~genome)
        more = np.repeat(genome[None], len(dropped), axis=0)
        more[np.arange(len(dropped)), dropped] = True
        assert ((part.macs(more) > 0.6 * space.macs_dense) | (part.macs(more) == cost)).all()
    repaired = part.repair(genomes, rng=np.random.default_rng(3), budgets={"macs": 0.6})
    np.testing.assert_array_equal(repaired, genomes)


def test_groups_are_counted_within_the_part() -> None:
    space = traced("chain")[2]
    part = part_of(space, [0, 2])
    assert [group.start for group in part.groups] == [0, part.groups[0].size] == part.lattice.starts.tolist()
    assert part.n_genes == part.groups[-1].stop
    assert [group.name for group in part.groups] == [space.groups[0].name, space.groups[2].name]
    other = space.all_ones()[0]
    np.testing.assert_array_equal(part.embed(part.extract(other[None]), other)[0], other)


def test_a_budget_that_the_background_breaks_is_refused() -> None:
    space = traced("residual")[2]
    part = SubSpace(space, np.array([0]), space.all_ones()[0])
    least = space.macs_range[0] / space.macs_dense
    with pytest.raises(BudgetError, match="must lie within the reachable range"):
        part.sample(rng=np.random.default_rng(0), n=1, budgets={"macs": least})


@pytest.mark.parametrize("groups", [[], [1, 0], [0, 0], [-1], [99]])
def test_open_groups_are_checked(groups: list[int]) -> None:
    with pytest.raises(OptionError, match="ascending indices"):
        part_of(traced("residual")[2], groups)


def test_shapes_are_checked() -> None:
    space = traced("residual")[2]
    with pytest.raises(GenomeShapeError, match="a background must have shape"):
        SubSpace(space, np.array([0]), np.ones(3, np.bool_))
    with pytest.raises(GenomeShapeError, match="`extract` cuts them"):
        part_of(space, [0]).repair(space.all_ones(), rng=np.random.default_rng(0), budgets={})
