"""NSGA-II over quality and cost: the exact front of a tiny space, constraints, the archive, the state."""

from __future__ import annotations

import dataclasses
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evoprune.modes.staged import FreeRepairer
from evoprune.search import LadderPlan, ParetoSearch, SearchConfig
from evoprune.search.dominance import hypervolume
from evoprune.search.pareto import RangeRepairer
from search_spaces import SearchSpace
from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray, genome_digest
from search_spaces.repair import count_kept
from tests.evoprune.fakes import CountingEvaluator, make_target, tiny_space
from tests.evoprune.search.test_engine import assert_equal_states, through_files

CONFIG = SearchConfig({"macs": 1.0}, LadderPlan("network"), population_size=16, n_generations=5)


@lru_cache(maxsize=1)
def small_space() -> SearchSpace:
    """Two groups of six and five genes: 63 * 31 genomes."""
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 5, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SearchSpace.trace(model, torch.zeros(2, 3, 8, 8))


def all_genomes(space: SearchSpace) -> BoolArray:
    bits = (np.arange(2**space.n_genes)[:, None] >> np.arange(space.n_genes)) & 1
    genomes = bits.astype(np.bool_)
    return genomes[space.is_valid(genomes)]


def evaluator_of(space: SearchSpace) -> CountingEvaluator:
    """What a dropped gene costs differs from gene to gene: the objective falls with every gene that is kept."""
    return CountingEvaluator(np.ones(space.n_genes, np.float32))


def advance(search: ParetoSearch, evaluator: CountingEvaluator, until: int | None = None) -> None:
    while search.generation < (search.config.n_generations if until is None else until):
        request = search.ask()
        search.tell(evaluator.evaluate(request.genomes, request.rung))


def make_search(config: SearchConfig = CONFIG, seed: int = 3, **options: Any) -> ParetoSearch:
    return ParetoSearch(tiny_space(), config, seed=seed, **options)


def test_the_front_of_a_tiny_space_is_that_of_brute_force() -> None:
    space = small_space()
    genomes = all_genomes(space)
    assert len(genomes) == 63 * 31
    evaluator = evaluator_of(space)
    objectives = np.array([evaluation.objective for evaluation in evaluator.evaluate(genomes, "network")])
    costs = space.macs(genomes) / space.macs_dense
    front: set[str] = set()
    points = []
    for row in np.lexsort((costs, objectives)):
        is_dominated = any(
            o <= objectives[row] and c <= costs[row] and (o, c) != (objectives[row], costs[row]) for o, c in points
        )
        if not is_dominated:
            points.append((objectives[row], costs[row]))
            front.add(genome_digest(genomes[row]))
    config = dataclasses.replace(CONFIG, population_size=48, n_generations=16)
    search = ParetoSearch(space, config, seed=1, has_budget=False)
    searching = evaluator_of(space)
    advance(search, searching)
    assert len(searching.seen) < len(genomes) / 2
    assert {member.digest for member in search.archive} == front
    assert search.logbook[-1]["n_front"] == len(front)


def test_the_initial_population_covers_all_costs_up_to_the_budget() -> None:
    for budget in (1.0, 0.4):
        search = make_search(dataclasses.replace(CONFIG, budgets={"macs": budget}, population_size=24))
        costs = np.sort(search.costs(search.ask().genomes))
        least = tiny_space().macs_range[0] / tiny_space().macs_dense
        assert costs[0] == pytest.approx(least, rel=1e-6)
        assert budget * 0.97 < costs[-1] <= budget
        assert np.diff(costs).max() < 0.2 * budget
        assert len({genome_digest(genome) for genome in search.ask().genomes}) == len(costs)


def test_budgets_hold_and_the_best_within_any_budget_is_on_the_front() -> None:
    space = tiny_space()
    config = dataclasses.replace(CONFIG, budgets={"macs": 0.6, "params": 0.7})
    search, evaluator = make_search(config), CountingEvaluator(make_target(space.n_genes))
    judged: dict[str, tuple[float, float]] = {}
    while not search.is_finished:
        request = search.ask()
        assert (space.macs(request.genomes) <= 0.6 * space.macs_dense).all()
        assert (space.n_params(request.genomes) <= 0.7 * space.n_params_dense).all()
        evaluations = evaluator.evaluate(request.genomes, request.rung)
        costs = search.costs(request.genomes).tolist()
        judged.update({e.digest: (e.objective, c) for e, c in zip(evaluations, costs, strict=True)})
        search.tell(evaluations)
    for budget in (0.6, 0.45, 0.3, 0.2):
        best = search.best_within(budget)
        assert best is not None
        assert best.objective == min(objective for objective, cost in judged.values() if cost <= budget)
        assert judged[best.digest][1] <= budget
    assert search.best == search.best_within(0.6)
    assert search.best_within(1e-6) is None


def test_the_hypervolume_never_falls_and_is_that_of_the_archive() -> None:
    search, evaluator = make_search(), CountingEvaluator(make_target(tiny_space().n_genes))
    advance(search, evaluator)
    volumes = search.logbook.select("hypervolume")
    assert volumes == sorted(volumes)
    assert volumes[-1] > volumes[0] > 0
    reference = search.state().data["reference"]
    assert volumes[-1] == hypervolume(search.archive.objective_values(), reference)


def test_a_front_has_no_limit_beyond_which_a_genome_is_of_no_use() -> None:
    search, evaluator = ParetoSearch(tiny_space(), CONFIG, seed=1), CountingEvaluator(make_target(tiny_space().n_genes))
    while not search.is_finished:
        request = search.ask()
        assert request.limit == np.inf
        search.tell(evaluator.evaluate(request.genomes, request.rung))


def test_without_a_budget_the_knee_is_handed_back() -> None:
    search = make_search(has_budget=False)
    assert search.best is None
    advance(search, CountingEvaluator(make_target(tiny_space().n_genes)), 2)
    values = search.archive.objective_values()
    scaled = (values - values.min(axis=0)) / np.ptp(values, axis=0)
    assert search.best is not None
    assert search.best.objective == values[scaled.sum(axis=1).argmin(), 0]


@pytest.mark.parametrize("ladder", [LadderPlan("network"), LadderPlan("network", screen="cheap", screen_factor=3)])
def test_a_search_restored_at_any_generation_goes_on_as_the_uninterrupted_one(ladder: LadderPlan) -> None:
    config = dataclasses.replace(CONFIG, ladder=ladder, min_diversity=1.0)
    target = make_target(tiny_space().n_genes)
    whole = make_search(config)
    states = [through_files(whole.state())]
    while not whole.is_finished:
        advance(whole, CountingEvaluator(target), whole.generation + 1)
        states.append(through_files(whole.state()))
    for state in states:
        resumed = make_search(config)
        resumed.restore(state)
        assert_equal_states(resumed.state(), state)
        advance(resumed, CountingEvaluator(target))
        assert_equal_states(resumed.state(), whole.state())
        assert resumed.best is not None
        assert whole.best is not None
        assert resumed.best.digest == whole.best.digest
    other = make_search(config, seed=4)
    advance(other, CountingEvaluator(target))
    assert other.state().data["logbook"] != whole.state().data["logbook"]


def test_repair_over_a_range_drifts_neither_way_and_is_idempotent() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        space = SearchSpace.trace(
            nn.Sequential(nn.Conv2d(3, 30, 3), nn.ReLU(), nn.Conv2d(30, 4, 1)), torch.zeros(2, 3, 8, 8), round_to=8
        )
    repairer, rng = RangeRepairer(space, {"macs": 1.0}), np.random.default_rng(0)
    genomes = np.zeros((4000, space.n_genes), np.bool_)
    genomes[:, :13] = True
    repaired = repairer(genomes, rng=rng)
    counts = count_kept(repaired, space.lattice)[:, 0]
    assert set(counts.tolist()) == {8, 16}
    assert counts.mean() == pytest.approx(13, abs=0.3)
    np.testing.assert_array_equal(repairer(repaired, rng=rng), repaired)
    free = FreeRepairer(space, {"macs": 0.5})(genomes, rng=rng)
    assert count_kept(free, space.lattice)[:, 0].mean() == pytest.approx(13, abs=0.3)
    tight = RangeRepairer(space, {"macs": 0.5})
    assert tight.is_feasible(tight(genomes, rng=rng)).all()


def test_a_front_needs_a_cost_and_one_judge() -> None:
    with pytest.raises(OptionError, match="'params' has none among"):
        make_search(metric="params")
    with pytest.raises(OptionError, match="judged by one rung, but the ladder has the elite rung 'dear'"):
        make_search(dataclasses.replace(CONFIG, ladder=LadderPlan("network", elite="dear")))


@pytest.mark.parametrize("n_seeds", [0, 8])
def test_as_many_are_random_as_in_a_search_at_one_budget(n_seeds: int) -> None:
    search = make_search()
    n = CONFIG.population_size - n_seeds
    dealt = search._dealt(n, 8)
    assert sum(n_level for _, _, n_level in dealt) == n
    assert max(n_level for _, _, n_level in dealt) - min(n_level for _, _, n_level in dealt) <= 1
    assert sum(n_uniform for n_uniform, _, _ in dealt) == round(CONFIG.initial.uniform * n)
    assert sum(n_random for _, n_random, _ in dealt) == round(CONFIG.initial.random * n)
    assert all(n_uniform + n_random <= n_level for n_uniform, n_random, n_level in dealt)
