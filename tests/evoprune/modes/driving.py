"""Drives strategies without a runner, and compares them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evoprune.modes import MODES, SearchTask
from evoprune.options import SearchOptions
from evoprune.search import LadderPlan, Prior, SearchConfig, SearchState, Strategy
from search_spaces.genome import BoolArray
from tests.evoprune.fakes import CountingEvaluator, tiny_space


def make_strategy(
    mode: str,
    *,
    budget: float | None = 0.5,
    ladder: LadderPlan | None = None,
    seed: int = 5,
    n_generations: int = 2,
    seeds: BoolArray | None = None,
    priors: Sequence[Prior] = (),
    **options: Any,
) -> Strategy:
    """Return the strategy of ``mode`` on the tiny space; ``priors`` come after one of scores."""
    budgets = {"macs": 1.0 if budget is None else budget}
    plan = ladder or LadderPlan("network")
    config = SearchConfig(budgets, plan, population_size=6, n_generations=n_generations)
    scores = np.random.default_rng(3).random(tiny_space().n_genes)
    resolved = SearchOptions(mode=mode, seed=seed, budget=("1" if budget is None else str(budget),), **options)
    task = SearchTask(
        tiny_space(), config, resolved, scores, seeds, scores_are_errors=True, priors=(Prior("scores", scores), *priors)
    )
    return MODES[mode].build(task)


def make_evaluator() -> CountingEvaluator:
    """Return an evaluator that likes the dense network better than one stripped of nearly everything."""
    target = np.random.default_rng(7).random(tiny_space().n_genes) < 0.8
    return CountingEvaluator(target.astype(np.float32))


def step(strategy: Strategy, evaluator: CountingEvaluator) -> bool:
    """Answer one request; return whether it ended a generation."""
    request = strategy.ask()
    return strategy.tell(evaluator.evaluate(request.genomes, request.rung))


def advance(
    strategy: Strategy, evaluator: CountingEvaluator, on_generation: Callable[[Strategy], None] | None = None
) -> None:
    while not strategy.is_finished:
        if step(strategy, evaluator) and on_generation is not None:
            on_generation(strategy)


def through_files(state: SearchState) -> SearchState:
    """What is left of a state after JSON and copies."""
    data = json.loads(json.dumps(state.data, allow_nan=False))
    return SearchState({k: v.copy() for k, v in state.arrays.items()}, data)


def assert_equal_states(first: SearchState, second: SearchState) -> None:
    assert json.loads(json.dumps(first.data)) == json.loads(json.dumps(second.data))
    assert first.arrays.keys() == second.arrays.keys()
    for name, array in first.arrays.items():
        np.testing.assert_array_equal(array, second.arrays[name], err_msg=name)
