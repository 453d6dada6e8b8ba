"""Random search and given genomes: equal evaluations, no parents, and the same contract as every strategy."""

from __future__ import annotations

import numpy as np
import pytest

from evoprune.search import GivenGenomes, LadderPlan, RandomSearch, Repairer, Search, SearchConfig
from search_spaces.errors import OptionError
from tests.evoprune.fakes import CountingEvaluator, make_target, tiny_space
from tests.evoprune.search.test_engine import advance, assert_equal_states, make_evaluator, through_files

CONFIG = SearchConfig({"macs": 0.5}, LadderPlan("network"), population_size=10, n_generations=5)


def test_random_search_evaluates_as_many_genomes_as_a_search_and_keeps_the_best() -> None:
    random, search = RandomSearch(tiny_space(), CONFIG, seed=2), Search(tiny_space(), CONFIG, seed=2)
    evaluators = make_evaluator(), make_evaluator()
    objectives = []
    while not random.is_finished:
        request = random.ask()
        assert (tiny_space().macs(request.genomes) <= 0.5 * tiny_space().macs_dense).all()
        evaluations = evaluators[0].evaluate(request.genomes, request.rung)
        objectives += [evaluation.objective for evaluation in evaluations]
        random.tell(evaluations)
    advance(search, evaluators[1])
    assert len(evaluators[0].seen) == len(evaluators[1].seen) == 60
    assert len(set(evaluators[0].seen)) == 60
    assert random.best is not None
    assert random.best.objective == min(objectives)
    assert [individual.objective for individual in random.population] == sorted(objectives)[:10]


def test_what_is_asked_at_random_does_not_depend_on_the_answers() -> None:
    asked = []
    for target in (make_target(tiny_space().n_genes), 1 - make_target(tiny_space().n_genes)):
        evaluator = CountingEvaluator(target)
        advance(RandomSearch(tiny_space(), CONFIG, seed=2), evaluator)
        asked.append(evaluator.seen)
    assert asked[0] == asked[1]


def test_random_search_restored_at_any_generation_goes_on_as_the_uninterrupted_one() -> None:
    whole = RandomSearch(tiny_space(), CONFIG, seed=4)
    states = [through_files(whole.state())]
    while not whole.is_finished:
        advance(whole, make_evaluator(), whole.generation + 1)
        states.append(through_files(whole.state()))
    for state in states:
        resumed = RandomSearch(tiny_space(), CONFIG, seed=4)
        resumed.restore(state)
        advance(resumed, make_evaluator())
        assert_equal_states(resumed.state(), whole.state())


def test_given_genomes_are_judged_as_they_are_and_nothing_else() -> None:
    space, evaluator = tiny_space(), make_evaluator()
    genomes = Repairer(space, {"macs": 0.5}).sample(3, rng=np.random.default_rng(0))
    genomes[0, :2] = False  # feasible, and not what repair would leave
    given = GivenGenomes(space, CONFIG, seed=0, seeds=genomes)
    np.testing.assert_array_equal(given.ask().genomes, genomes)
    advance(given, evaluator, 0)
    assert given.is_finished
    assert given.n_generations == 0
    assert given.best is not None
    assert given.best.objective == min(e.objective for e in make_evaluator().evaluate(genomes, "network"))
    assert len(evaluator.seen) == 3


def test_given_genomes_must_exist_and_hold_the_budget() -> None:
    with pytest.raises(OptionError, match="needs some, but got none"):
        GivenGenomes(tiny_space(), CONFIG, seed=0).ask()
    with pytest.raises(OptionError, match="must hold the budgets"):
        GivenGenomes(tiny_space(), CONFIG, seed=0, seeds=tiny_space().all_ones()).ask()
