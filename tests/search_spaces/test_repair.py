from __future__ import annotations

import numpy as np
import pytest

from search_spaces import SearchSpace
from search_spaces.cost import whole_limit
from search_spaces.errors import BudgetError, GenomeShapeError, OptionError, UnknownNameError
from tests.search_spaces.patterns import build_pattern
from tests.search_spaces.spaces import traced

NAMES = [
    "chain",
    "residual",
    "grouped",
    "option-A shortcut",
    "dense connections",
    "channel shuffle",
    "flatten to linear",
]


def trace(name: str, **rules: object) -> SearchSpace:
    model, inputs = build_pattern(name)
    return SearchSpace.trace(model, inputs, verify=False, **rules)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_the_share_of_the_cheapest_network_is_a_budget(name: str) -> None:
    space = trace(name)
    for metric in space.costs:
        least, most = space.cost_range(metric)
        assert [limit.at_most for limit in space.limits({metric: least / most})] == [least]
        genomes = space.sample(rng=np.random.default_rng(0), n=2, budgets={metric: least / most})
        assert (space.cost(metric, genomes) == least).all()


def least_budget(space: SearchSpace) -> float:
    return space.macs_range[0] / space.macs_dense


def any_genomes(space: SearchSpace, n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.random((n, space.n_genes)) < rng.random((n, 1))


def assert_maximal(space: SearchSpace, genomes: np.ndarray, limit: int) -> None:
    """No single further step of any group fits the limit."""
    counts = space.kept_counts(genomes)
    for column, group in enumerate(space.groups):
        larger = counts.copy()
        larger[:, column] = np.minimum(counts[:, column] // group.step * group.step + group.step, group.size)
        grows = larger[:, column] > counts[:, column]
        assert (space.macs_cost(larger)[grows] > limit).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rules", [{}, {"round_to": 2}, {"min_channels": 2}, {"round_to": 3, "min_channels": 0.3}])
@pytest.mark.parametrize("with_scores", [False, True])
def test_repair_is_feasible_idempotent_and_leaves_no_slack(
    name: str, rules: dict[str, float], with_scores: bool
) -> None:
    space = trace(name, **rules)
    genomes = any_genomes(space, 20)
    scores = np.random.default_rng(5).random(space.n_genes) if with_scores else None
    low = least_budget(space)
    for budget in (low + 1e-6, 0.5 * (1 + low), 0.2 + 0.8 * low, 1.0):
        limit = whole_limit(budget, space.macs_dense)
        fixed = space.repair(genomes, macs_budget=budget, rng=np.random.default_rng(1), scores=scores)
        counts = space.kept_counts(fixed)
        assert (space.macs(fixed) <= limit).all()
        for column, group in enumerate(space.groups):
            assert (counts[:, column] >= group.min_keep).all()
            assert ((counts[:, column] % group.step == 0) | (counts[:, column] == group.size)).all()
        assert_maximal(space, fixed, limit)
        again = space.repair(fixed, macs_budget=budget, rng=np.random.default_rng(2), scores=scores)
        assert np.array_equal(fixed, again)


@pytest.mark.parametrize("name", NAMES)
def test_both_budgets_hold(name: str) -> None:
    space = trace(name)
    fixed = space.repair(any_genomes(space, 10), macs_budget=0.6, params_budget=0.5, rng=np.random.default_rng(0))
    assert (space.macs(fixed) <= 0.6 * space.macs_dense).all()
    assert (space.n_params(fixed) <= 0.5 * space.n_params_dense).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rules", [{}, {"round_to": 2}, {"min_channels": 2}])
def test_any_budgets_hold_together_and_leave_no_room(name: str, rules: dict[str, float]) -> None:
    space = trace(name, **rules)
    shares = {"activation-bytes": 0.5, "params": 0.6, "macs": 0.55}
    budgets = {}
    for metric, share in shares.items():
        least, most = space.cost_range(metric)
        budgets[metric] = least / most + share * (1 - least / most)
    fixed = space.repair(any_genomes(space, 10), budgets=budgets, rng=np.random.default_rng(0))
    limits = space.limits(budgets)
    for metric, limit in zip(budgets, limits, strict=True):
        assert (space.cost(metric, fixed) <= limit.at_most).all()
    counts = space.kept_counts(fixed)
    for column in range(len(space.groups)):
        larger = counts.copy()
        larger[:, column] = space.lattice.above(counts)[:, column]
        grows = larger[:, column] > counts[:, column]
        over = np.any([limit.cost(larger) > limit.at_most for limit in limits], axis=0)
        assert over[grows].all()
    again = space.repair(fixed, budgets=budgets, rng=np.random.default_rng(1))
    assert np.array_equal(fixed, again)


def test_a_budget_given_twice_or_for_nothing_is_refused() -> None:
    _, _, space = traced("chain")
    with pytest.raises(BudgetError, match=r"macs has two, 0\.5 and 0\.4; leave one out"):
        space.repair(space.all_ones(), rng=np.random.default_rng(0), macs_budget=0.5, budgets={"macs": 0.4})
    with pytest.raises(UnknownNameError, match="unknown metric 'latency'; valid: activation-bytes, macs, params"):
        space.sample(rng=np.random.default_rng(0), n=1, budgets={"latency": 0.4})


def test_a_further_cost_is_budgeted_like_any_other() -> None:
    _, _, space = traced("chain")
    wider = space.with_cost("energy", space.params_cost)
    fixed = wider.repair(any_genomes(space, 5), budgets={"energy": 0.5}, rng=np.random.default_rng(0))
    assert (space.n_params(fixed) <= 0.5 * space.n_params_dense).all()
    assert wider.fingerprint == space.fingerprint
    with pytest.raises(OptionError, match="'macs' is counted already"):
        space.with_cost("macs", space.params_cost)


def test_without_a_budget_only_the_lattice_is_met() -> None:
    space = trace("residual", round_to=2)
    genomes = np.zeros((1, space.n_genes), np.bool_)
    assert space.kept_counts(space.repair(genomes, rng=np.random.default_rng(0))).tolist() == [[2, 2]]


def test_a_full_budget_keeps_everything() -> None:
    space = trace("residual")
    assert space.repair(any_genomes(space, 3), macs_budget=1.0, rng=np.random.default_rng(0)).all()


def test_the_least_wanted_genes_go_first() -> None:
    _, _, space = traced("chain")
    scores = np.arange(space.n_genes, dtype=np.float64)
    fixed = space.repair(space.all_ones(), macs_budget=0.5, rng=np.random.default_rng(0), scores=scores)[0]
    for group in space.groups:
        kept = np.flatnonzero(fixed[group.start : group.stop])
        assert kept.tolist() == list(range(group.size - len(kept), group.size))


def test_kept_genes_stay_when_slack_is_filled() -> None:
    space = trace("residual")
    genomes = any_genomes(space, 30)
    cheap = genomes[space.macs(genomes) <= 0.5 * space.macs_dense]
    cheap = cheap[space.is_valid(cheap)]
    fixed = space.repair(cheap, macs_budget=0.5, rng=np.random.default_rng(0))
    assert len(cheap) > 3
    assert (fixed | ~cheap).all()


def test_samples_are_diverse_and_reproducible() -> None:
    _, _, space = traced("flatten to linear")
    first = space.sample(rng=np.random.default_rng(3), n=40, macs_budget=0.5)
    assert np.array_equal(first, space.sample(rng=np.random.default_rng(3), n=40, macs_budget=0.5))
    assert len(np.unique(first, axis=0)) > 30


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.5, float("nan"), float("inf")])
def test_malformed_budgets(budget: float) -> None:
    _, _, space = traced("chain")
    with pytest.raises(BudgetError, match=r"fraction in \(0, 1\]"):
        space.sample(rng=np.random.default_rng(0), n=1, macs_budget=budget)


def test_an_unreachable_budget_names_the_reachable_range() -> None:
    _, _, space = traced("chain")
    least, most = space.macs_range
    with pytest.raises(BudgetError, match=rf"range \[{least:,}, {most:,}\].*raise the budget"):
        space.sample(rng=np.random.default_rng(0), n=1, macs_budget=least / most * 0.9)


def test_the_reachable_minimum_is_reached() -> None:
    _, _, space = traced("chain")
    least, most = space.macs_range
    genome = space.sample(rng=np.random.default_rng(0), n=1, macs_budget=(least + 0.5) / most)
    assert space.macs(genome)[0] == least


@pytest.mark.parametrize(
    "scores", [np.ones(3), np.full(15, np.nan), np.ones((2, 15))], ids=["short", "not a number", "other population"]
)
def test_malformed_scores(scores: np.ndarray) -> None:
    _, _, space = traced("chain")
    with pytest.raises(GenomeShapeError, match="scores must be numbers"):
        space.repair(space.all_ones(3), macs_budget=0.5, rng=np.random.default_rng(0), scores=scores)


@pytest.mark.parametrize("genomes", [np.ones((2, 3), np.bool_), np.ones(15, np.bool_), np.ones((1, 15))])
def test_genomes_of_another_space(genomes: np.ndarray) -> None:
    _, _, space = traced("chain")
    with pytest.raises(GenomeShapeError, match=r"shape \(n, 15\)"):
        space.macs(genomes)


def test_an_empty_population_is_returned_as_it_is() -> None:
    _, _, space = traced("chain")
    empty = np.empty((0, space.n_genes), np.bool_)
    assert space.repair(empty, macs_budget=0.5, rng=np.random.default_rng(0)).shape == empty.shape
    assert space.macs(empty).shape == (0,)
