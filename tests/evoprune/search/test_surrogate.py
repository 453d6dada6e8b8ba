from __future__ import annotations

import numpy as np
import pytest

from evoprune.search import LadderPlan, Search, SearchConfig
from evoprune.search.surrogate import LinearSurrogate
from tests.evoprune.fakes import CountingEvaluator, make_target, tiny_space


def linear_task(rng: np.random.Generator, n: int, n_genes: int = 40) -> tuple[np.ndarray, np.ndarray]:
    genomes = rng.random((n, n_genes)) < 0.5
    return genomes, np.exp(genomes @ np.linspace(-1.0, 1.0, n_genes) / 10)


def test_what_is_linear_in_the_logarithm_is_ordered_rightly() -> None:
    rng = np.random.default_rng(0)
    genomes, objectives = linear_task(rng, 200)
    unseen, truth = linear_task(rng, 50)
    predicted = LinearSurrogate(genomes, objectives).predict(unseen)
    assert np.corrcoef(predicted, np.log(truth))[0, 1] > 0.98


def test_the_dual_form_equals_ridge_regression() -> None:
    rng = np.random.default_rng(1)
    genomes, objectives = linear_task(rng, 12)
    centred = genomes - genomes.mean(axis=0)
    values = np.log(objectives) - np.log(objectives).mean()
    ridge = 0.1 * (centred**2).sum() / len(genomes)
    primal = np.linalg.solve(centred.T @ centred + ridge * np.eye(40), centred.T @ values)
    np.testing.assert_allclose(LinearSurrogate(genomes, objectives).weights, primal, atol=1e-12)


def test_objectives_that_are_not_positive_are_modelled_as_they_are() -> None:
    genomes, objectives = linear_task(np.random.default_rng(2), 100)
    predicted = LinearSurrogate(genomes, -objectives).predict(genomes)
    assert np.corrcoef(predicted, -objectives)[0, 1] > 0.9


@pytest.mark.parametrize("n", [1, 3])
def test_equal_genomes_teach_nothing(n: int) -> None:
    genomes = np.ones((n, 5), np.bool_)
    predicted = LinearSurrogate(genomes, np.full(n, 2.0)).predict(np.zeros((2, 5), np.bool_))
    np.testing.assert_allclose(predicted, np.log(2.0))


def test_a_prediction_does_not_depend_on_its_company() -> None:
    rng = np.random.default_rng(3)
    surrogate = LinearSurrogate(*linear_task(rng, 60))
    genomes = rng.random((257, 40)) < 0.5
    alone = np.concatenate([surrogate.predict(genome[None]) for genome in genomes])
    np.testing.assert_array_equal(surrogate.predict(genomes), alone)


def test_a_search_needs_fewer_evaluations_with_it() -> None:
    space = tiny_space()
    target = make_target(space.n_genes)
    best: dict[int, list[float]] = {1: [], 16: []}
    for factor, reached in best.items():
        config = SearchConfig(
            {"macs": 0.5}, LadderPlan("network"), population_size=8, n_generations=5, surrogate_factor=factor
        )
        for seed in range(5):
            search, evaluator = Search(space, config, seed=seed), CountingEvaluator(target)
            while not search.is_finished:
                request = search.ask()
                search.tell(evaluator.evaluate(request.genomes, request.rung))
            assert search.best is not None
            reached.append(search.best.objective)
    assert np.mean(best[16]) < np.mean(best[1])
