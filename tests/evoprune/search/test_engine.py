"""The search: same seed same run, resume at every generation, budgets, ladder roles, failures, the protocol."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evoprune.search import BestIndividuals, Individual, LadderPlan, Prior, Search, SearchConfig, SearchState
from fitness.evaluation import Evaluation
from search_spaces.errors import (
    ExecutionError,
    GenomeShapeError,
    ObjectiveValueError,
    OptionError,
    RunDirectoryError,
    UnknownNameError,
)
from search_spaces.genome import genome_digest
from tests.evoprune.fakes import CountingEvaluator, make_target, tiny_space

CONFIG = SearchConfig({"macs": 0.5}, LadderPlan("network"), population_size=10, n_generations=8)
LADDERS = {
    "judge": LadderPlan("network"),
    "screened": LadderPlan("network", screen="cheap", screen_factor=3),
    "whole": LadderPlan("network", screen="cheap", elite="dear", screen_factor=2, n_elites=2),
    "halving": LadderPlan("network", screen="cheap", halving=("dear",), screen_factor=3),
}


def make_search(config: SearchConfig = CONFIG, seed: int = 5, **options: Any) -> Search:
    return Search(tiny_space(), config, seed=seed, priors=make_priors(), **options)


def make_priors() -> list[Prior]:
    """A prior with an order, one with pairs, one with classes."""
    rng, sizes = np.random.default_rng(3), tiny_space().lattice.sizes
    pairs = {index: rng.random((size, size)) for index, size in enumerate(sizes)}
    classes = rng.integers(-1, 4, int(sizes.sum()))
    return [
        Prior("order", rng.random(int(sizes.sum()))),
        Prior("pairs", similarity=pairs),
        Prior("classes", classes=classes),
    ]


def make_evaluator(**options: Any) -> CountingEvaluator:
    return CountingEvaluator(make_target(tiny_space().n_genes), **options)


def advance(search: Search, evaluator: CountingEvaluator, until: int | None = None) -> None:
    while search.generation < (search.config.n_generations if until is None else until):
        request = search.ask()
        search.tell(evaluator.evaluate(request.genomes, request.rung))


def assert_equal_states(first: SearchState, second: SearchState) -> None:
    assert first.data == second.data
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)


def through_files(state: SearchState) -> SearchState:
    """What is left of a state after JSON and copies."""
    return SearchState({k: v.copy() for k, v in state.arrays.items()}, json.loads(json.dumps(state.data)))


@pytest.mark.parametrize("ladder", LADDERS.values(), ids=LADDERS)
def test_the_same_seed_gives_the_same_run_and_another_seed_another(ladder: LadderPlan) -> None:
    config = dataclasses.replace(CONFIG, ladder=ladder)
    first, again, other = make_search(config), make_search(config), make_search(config, seed=6)
    for search in (first, again, other):
        advance(search, make_evaluator())
    assert_equal_states(first.state(), again.state())
    assert other.state().data["logbook"] != first.state().data["logbook"]


@pytest.mark.parametrize("ladder", LADDERS.values(), ids=LADDERS)
def test_a_search_restored_at_any_generation_goes_on_as_the_uninterrupted_one(ladder: LadderPlan) -> None:
    config = dataclasses.replace(CONFIG, ladder=ladder, min_diversity=1.0)  # immigrants in every generation
    whole = make_search(config)
    states = [through_files(whole.state())]
    while not whole.is_finished:
        advance(whole, make_evaluator(), whole.generation + 1)
        states.append(through_files(whole.state()))
    assert len(states) == config.n_generations + 2
    for state in states:
        resumed = make_search(config)
        resumed.restore(state)
        assert_equal_states(resumed.state(), state)
        advance(resumed, make_evaluator())
        assert_equal_states(resumed.state(), whole.state())
        assert resumed.best is not None
        assert whole.best is not None
        assert resumed.best.digest == whole.best.digest


def test_a_state_taken_inside_a_generation_is_that_of_the_last_finished_one() -> None:
    config = dataclasses.replace(CONFIG, ladder=LADDERS["whole"])
    search = make_search(config)
    advance(search, make_evaluator(), 2)
    state = search.state()
    request = search.ask()
    assert request.role == "screen"
    search.tell(make_evaluator().evaluate(request.genomes, request.rung))
    assert search.ask().role == "judge"
    assert_equal_states(search.state(), state)
    search.restore(state)
    repeated = search.ask()
    assert repeated.digests == request.digests
    assert repeated.generation == request.generation == 3


@pytest.mark.parametrize("ladder", LADDERS.values(), ids=LADDERS)
def test_no_genome_is_asked_for_twice_and_all_are_feasible(ladder: LadderPlan) -> None:
    space, evaluator = tiny_space(), make_evaluator()
    search = make_search(dataclasses.replace(CONFIG, ladder=ladder, n_offspring=7))
    while not search.is_finished:
        request = search.ask()
        assert search.ask() is request
        assert (space.macs(request.genomes) <= 0.5 * space.macs_dense).all()
        assert len(request.genomes) <= {"screen": 7 * ladder.screen_factor, "judge": 10, "elite": 2}[request.role]
        search.tell(evaluator.evaluate(request.genomes, request.rung))
    assert len(set(evaluator.seen)) == len(evaluator.seen)


def test_the_best_never_gets_lost_and_the_population_improves() -> None:
    search, evaluator = make_search(), make_evaluator()
    advance(search, evaluator)
    best = search.logbook.select("best")
    assert best == sorted(best, reverse=True)
    assert best[-1] < 0.9 * best[0]
    target = make_target(tiny_space().n_genes)
    evaluated = np.array(
        [e.objective for e in make_evaluator().evaluate(np.array([i.genome for i in search.population]), "network")]
    )
    assert (np.diff(evaluated) >= 0).all()
    assert search.best is not None
    assert search.best.objective == evaluated[0] == best[-1]
    assert search.best.rung == "network"
    assert target.shape == search.best.genome.shape


def test_the_winner_is_the_best_of_the_elite_rung_and_rungs_are_never_mixed() -> None:
    evaluator = make_evaluator()
    search = make_search(dataclasses.replace(CONFIG, ladder=LADDERS["whole"]))
    told: dict[str, dict[str, float]] = {"cheap": {}, "network": {}, "dear": {}}
    while not search.is_finished:
        request = search.ask()
        evaluations = evaluator.evaluate(request.genomes, request.rung)
        if request.role == "elite":  # a rung that disagrees: what the judge likes best is its worst
            evaluations = [dataclasses.replace(e, objective=1000 - e.objective) for e in evaluations]
        told[request.rung].update((e.digest, e.objective) for e in evaluations)
        search.tell(evaluations)
    assert search.best is not None
    assert search.best.rung == "dear"
    assert search.best.objective == min(told["dear"].values()) == told["dear"][search.best.digest]
    for individual in search.population + list(search.best_individuals):
        assert individual.objective == told["network"][individual.digest]


def test_halving_passes_on_equal_shares_from_screen_to_screen() -> None:
    """A factor of 4 is one of 2 at each of two screens, and every screen sees the best of the one before."""
    plan = LadderPlan("network", screen="cheap", halving=("dear",), screen_factor=4)
    assert plan.rungs == ("cheap", "dear", "network")
    assert [plan.n_passed(screen, 16) for screen in plan.screens] == [32, 16]
    search, evaluator = make_search(dataclasses.replace(CONFIG, ladder=plan)), make_evaluator()
    search.tell(evaluator.evaluate(search.ask().genomes, "network"))
    seen: list[tuple[str, str, list[str]]] = []
    while search.generation < 1:
        request = search.ask()
        seen.append((request.role, request.rung, list(request.digests)))
        evaluations = evaluator.evaluate(request.genomes, request.rung)
        best = (
            sorted(evaluations, key=lambda e: e.objective)[: plan.n_passed(request.rung, 10)]
            if request.role == "screen"
            else []
        )
        search.tell(evaluations)
        if best:
            assert set(search.ask().digests) == {evaluation.digest for evaluation in best}
    assert [(role, rung, len(digests)) for role, rung, digests in seen] == [
        *(("screen", "cheap", 40), ("screen", "dear", 20), ("judge", "network", 10))
    ]
    assert search.logbook[-1]["n_screened"] == 40


def test_screening_lets_the_best_screened_through() -> None:
    search, evaluator = make_search(dataclasses.replace(CONFIG, ladder=LADDERS["screened"])), make_evaluator()
    advance(search, evaluator, 0)
    request = search.ask()
    assert (request.role, request.rung, len(request.genomes)) == ("screen", "cheap", 30)
    evaluations = evaluator.evaluate(request.genomes, request.rung)
    search.tell(evaluations)
    judged = search.ask()
    assert judged.role == "judge"
    best = sorted(evaluations, key=lambda e: e.objective)[:10]
    assert set(judged.digests) == {e.digest for e in best}


def test_failures_and_nan_never_enter_the_population_nor_the_halls_of_fame() -> None:
    search = make_search(dataclasses.replace(CONFIG, ladder=LADDERS["whole"]))
    n_failed = 0
    while not search.is_finished:
        request = search.ask()
        evaluations = make_evaluator().evaluate(request.genomes, request.rung)
        for i in range(0, len(evaluations), 3):
            evaluations[i] = Evaluation(request.digests[i], request.rung, 0, math.nan if i % 2 else math.inf)
            n_failed += request.role == "judge"
        search.tell(evaluations)
    assert sum(search.logbook.select("n_failed")) == n_failed > 0
    values = search.state().arrays
    for name in ("objective_values", "best_objectives", "elite_objectives"):
        assert np.isfinite(values[name]).all()
    json.dumps(search.state().data, allow_nan=False)


def test_an_initial_population_of_failures_is_an_error_with_the_first_reason() -> None:
    search = make_search()
    request = search.ask()
    evaluations = [
        Evaluation(digest, "network", 0, math.inf, failure="ValueError: broken") for digest in request.digests
    ]
    with pytest.raises(ExecutionError, match="all 10 failed; the first: ValueError: broken"):
        search.tell(evaluations)


def test_a_space_that_is_exhausted_ends_in_empty_requests() -> None:
    space = tiny_space()
    budget = space.macs_range[0] / space.macs_dense
    config = SearchConfig(
        {"macs": budget}, LadderPlan("network"), population_size=400, n_offspring=400, n_generations=12
    )
    search, evaluator = make_search(config), make_evaluator()
    advance(search, evaluator)
    assert search.logbook[-1]["nevals"] < 400
    assert len(set(evaluator.seen)) == len(evaluator.seen)


def test_immigrants_come_when_diversity_is_gone() -> None:
    always, never = (dataclasses.replace(CONFIG, min_diversity=d, immigrant_share=0.3) for d in (1.0, 0.0))
    for config in (always, never):
        search = make_search(config)
        advance(search, make_evaluator(), 4)
        diversities = np.array(search.logbook.select("diversity"))
        is_gone = diversities[:-1] < config.min_diversity * diversities[0]
        n_immigrants = np.array(search.logbook.select("n_immigrants"))
        assert is_gone.any() == (config is always)
        np.testing.assert_array_equal(n_immigrants[1:] > 0, is_gone)
        assert n_immigrants.max() <= 3  # one that is known already does not come again
        assert set(search.logbook.select("nevals")) == {10}


def test_an_operator_can_be_replaced_and_added_by_name() -> None:
    calls: list[int] = []

    def mutate_nothing(genomes: Any, *, rates: Any, rng: Any, guide: Any) -> Any:
        calls.append(len(genomes))
        return genomes

    search = make_search(dataclasses.replace(CONFIG, mutations={"flip": 1.0, "mine": 3.0}))
    with pytest.raises(UnknownNameError, match="unknown operator for `mutate` 'mine'"):
        advance(search, make_evaluator())
    search.toolbox.register("mutate_mine", mutate_nothing)
    advance(search, make_evaluator(), 2)
    assert sum(calls) > 0


def misorder(evaluations: list[Evaluation]) -> list[Evaluation]:
    return evaluations[::-1]


def shorten(evaluations: list[Evaluation]) -> list[Evaluation]:
    return evaluations[:-1]


def rename_rung(evaluations: list[Evaluation]) -> list[Evaluation]:
    return [dataclasses.replace(e, rung="cheap") for e in evaluations]


@pytest.mark.parametrize("spoil", [misorder, shorten, rename_rung])
def test_answers_to_another_question_are_refused(spoil: Callable[[list[Evaluation]], list[Evaluation]]) -> None:
    search = make_search()
    request = search.ask()
    evaluations = make_evaluator().evaluate(request.genomes, request.rung)
    with pytest.raises(OptionError, match="one evaluation per requested genome, in order: 10 at 'network'"):
        search.tell(spoil(evaluations))
    assert search.tell(evaluations) is True


def test_telling_without_asking_is_refused() -> None:
    with pytest.raises(ExecutionError, match="nothing was asked"):
        make_search().tell([])


def test_a_state_of_another_search_is_refused() -> None:
    search = make_search()
    advance(search, make_evaluator(), 1)
    with pytest.raises(RunDirectoryError, match=r"these differ: seed \(saved 5, now 6\)"):
        make_search(seed=6).restore(search.state())
    with pytest.raises(RunDirectoryError, match="these differ: config"):
        make_search(dataclasses.replace(CONFIG, p_crossover=0.1)).restore(search.state())
    longer = make_search(dataclasses.replace(CONFIG, n_generations=30))
    longer.restore(through_files(search.state()))
    assert not longer.is_finished


@pytest.mark.parametrize(
    "change",
    [
        {"population_size": 1},
        {"n_offspring": 0},
        {"n_generations": -1},
        {"p_crossover": 1.5},
        {"mutation_rates": (0.1, 0.01)},
        {"mutations": {}},
        {"crossovers": {"uniform": math.nan}},
        {"immigrant_share": -0.1},
    ],
)
def test_wrong_configurations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="must hold for a search"):
        dataclasses.replace(CONFIG, **change)


def test_a_rung_has_one_role() -> None:
    with pytest.raises(OptionError, match="has one role"):
        LadderPlan("network", elite="network")


def test_of_equal_individuals_the_first_found_stays_first() -> None:
    genomes = np.eye(4, dtype=np.bool_)
    hall = BestIndividuals(3)
    hall.update([Individual.of(genome, 1.0) for genome in genomes])
    hall.update([Individual.of(genomes[0], 1.0)])
    assert [individual.digest for individual in hall] == [genome_digest(genome) for genome in genomes[:3]]
    for objective in (math.nan, math.inf):
        with pytest.raises(ObjectiveValueError, match="must have a finite objective"):
            Individual.of(genomes[0], objective)


def test_a_fresh_population_replaces_one_whose_diversity_is_gone_and_the_best_survives() -> None:
    config = dataclasses.replace(CONFIG, min_diversity=1.0, restart=True, n_generations=6)
    search, evaluator = make_search(config), make_evaluator()
    advance(search, evaluator)
    restarts = search.logbook.select("is_restart")
    assert any(restarts)
    assert not any(restarts[:1])
    best = search.logbook.select("best")
    assert best == sorted(best, reverse=True)
    for row, is_restart in enumerate(restarts):
        if is_restart:  # its members are its own, and none was known before
            assert search.logbook[row]["n_immigrants"] == search.logbook[row]["nevals"]
            assert search.logbook[row]["min"] >= best[row]
    assert len(set(evaluator.seen)) == len(evaluator.seen)
    never = make_search(dataclasses.replace(config, min_diversity=0.0))
    advance(never, make_evaluator())
    assert not any(never.logbook.select("is_restart"))


def test_a_population_is_kept_where_all_of_its_successor_fails() -> None:
    config = dataclasses.replace(CONFIG, min_diversity=1.0, restart=True)
    search = make_search(config)
    advance(search, make_evaluator(), 0)
    while True:
        request = search.ask()
        if len(search.population) and not set(request.digests) & {i.digest for i in search.population}:
            before = [individual.digest for individual in search.population]
            search.tell([Evaluation(digest, request.rung, 0, math.inf) for digest in request.digests])
            break
    assert [individual.digest for individual in search.population] == before


def widths_only(genomes: Any, search: Search) -> bool:
    """Whether every group keeps the genes that the first prior wants most."""
    order = make_priors()[0].scores
    assert order is not None
    for start, size in zip(search.space.lattice.starts, search.space.lattice.sizes, strict=True):
        ranked = np.argsort(-order[start : start + size], kind="stable")
        kept = genomes[:, start : start + size][:, ranked]
        if (np.diff(kept.astype(int), axis=1) > 0).any():
            return False
    return True


def test_widths_evolve_first_and_bits_afterwards_under_the_same_budget() -> None:
    space = tiny_space()
    search, evaluator = make_search(dataclasses.replace(CONFIG, width_generations=3, n_generations=6)), make_evaluator()
    found = []
    while not search.is_finished:
        request = search.ask()
        assert (space.macs(request.genomes) <= 0.5 * space.macs_dense).all()
        assert len(set(request.digests)) == len(request.digests)
        found.append(widths_only(request.genomes, search))
        search.tell(evaluator.evaluate(request.genomes, request.rung))
    assert found == [True] * 4 + [False] * 3
    assert len(set(evaluator.seen)) == len(evaluator.seen)


@pytest.mark.parametrize("change", [{"restart": True, "min_diversity": 1.0}, {"width_generations": 2}])
def test_restarts_and_width_phases_are_resumed_exactly(change: dict[str, Any]) -> None:
    config = dataclasses.replace(CONFIG, n_generations=5, **change)
    whole = make_search(config)
    states = []
    while not whole.is_finished:
        advance(whole, make_evaluator(), whole.generation + 1)
        states.append(through_files(whole.state()))
    for state in states[:-1]:
        resumed = make_search(config)
        resumed.restore(state)
        advance(resumed, make_evaluator())
        assert_equal_states(resumed.state(), whole.state())


def test_operators_whose_children_survive_are_used_more_often() -> None:
    def spoil(genomes: Any, *, rates: Any, rng: Any, guide: Any) -> Any:
        return rng.random(genomes.shape) < 0.5

    config = dataclasses.replace(CONFIG, mutations={"spoil": 1.0, "swap": 1.0}, n_generations=8)
    adaptive, constant = make_search(config), make_search(dataclasses.replace(config, adapt_operators=False))
    for search in (adaptive, constant):
        search.toolbox.register("mutate_spoil", spoil)
        advance(search, make_evaluator())
    last = adaptive.logbook[-1]
    assert last["share_mutate_swap"] > 0.6 > 0.4 > last["share_mutate_spoil"] >= 0.15
    assert constant.logbook[-1]["share_mutate_swap"] == constant.logbook[-1]["share_mutate_spoil"] == 0.5


@pytest.mark.parametrize("seeds", [np.ones((2, 3), np.bool_), np.ones(4, np.bool_), np.ones((2, 8))])
def test_seeds_that_are_no_genomes_of_the_space_are_refused(seeds: Any) -> None:
    with pytest.raises(GenomeShapeError, match=r"seeds must be a boolean array \(m, "):
        Search(tiny_space(), SearchConfig({"macs": 0.5}, LadderPlan("network")), seed=0, seeds=seeds)


def test_only_the_judge_of_a_full_population_has_a_limit() -> None:
    config = dataclasses.replace(CONFIG, ladder=LADDERS["whole"], n_best=4)
    search, evaluator = make_search(config), make_evaluator()
    limits: dict[str, list[float]] = {"screen": [], "judge": [], "elite": []}
    while not search.is_finished:
        request = search.ask()
        limits[request.role].append(request.limit)
        if request.role == "judge" and request.generation:
            assert request.limit == max(individual.objective for individual in search.population)
        search.tell(evaluator.evaluate(request.genomes, request.rung))
    assert limits["judge"][0] == math.inf
    assert all(limit < math.inf for limit in limits["judge"][1:])
    assert set(limits["screen"] + limits["elite"]) == {math.inf}


def test_without_truncation_or_with_more_best_than_were_judged_there_is_no_limit() -> None:
    search, evaluator = make_search(dataclasses.replace(CONFIG, n_best=1000)), make_evaluator()
    advance(search, evaluator, until=1)
    assert search.ask().limit == math.inf
    search = make_search(dataclasses.replace(CONFIG, n_best=4))
    search.toolbox.register("survive", lambda values, n: np.argsort(values[:, 0], kind="stable")[:n])
    advance(search, evaluator, until=1)
    assert search.ask().limit == math.inf


def test_the_best_of_a_run_outlive_its_population_and_set_the_limit_with_it() -> None:
    search, evaluator = make_search(dataclasses.replace(CONFIG, n_best=25)), make_evaluator()
    advance(search, evaluator, until=3)
    worst = max(individual.objective for individual in search.population)
    assert search.ask().limit == search.best_individuals[-1].objective > worst


def test_a_fresh_population_has_no_limit() -> None:
    config = dataclasses.replace(CONFIG, restart=True, min_diversity=1.0, n_best=4)
    search, evaluator = make_search(config), make_evaluator()
    limits = []
    while not search.is_finished:
        request = search.ask()
        limits.append(request.limit)
        search.tell(evaluator.evaluate(request.genomes, request.rung))
    is_restart = search.logbook.select("is_restart")
    assert any(is_restart[1:])
    assert all(limit == math.inf for limit, is_fresh in zip(limits, is_restart, strict=True) if is_fresh)
    assert min(limits) < math.inf
