"""Random search beside a search: as many genomes, the best by the same rung; stopped, longer, without success."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from evoprune.comparison import RandomOutcome, compare_at_random, random_genomes
from evoprune.evaluation_store import EvaluationStore
from evoprune.execution import InProcessExecutor
from evoprune.interruption import InterruptedRunError
from evoprune.observer import SilentObserver
from evoprune.run_directory import RunDirectory
from evoprune.search import LadderPlan
from fitness.evaluation import Evaluation
from search_spaces.genome import BoolArray, genome_digest
from tests.evoprune.fakes import CountingEvaluator, make_target, tiny_space
from tests.evoprune.test_runner import make_run

BUDGETS = {"macs": 0.5, "params": 0.6}
PLAN = LadderPlan("network", screen="cheap", elite="dear", n_elites=2)
COUNTS = {"cheap": 90, "network": 30, "dear": 5}


class Hopeless(CountingEvaluator):
    """Every evaluation fails."""

    def _evaluate(self, genome: BoolArray, rung: str) -> Evaluation:
        return Evaluation(genome_digest(genome), rung, 8, math.nan)


def evaluator() -> CountingEvaluator:
    return CountingEvaluator(make_target(tiny_space().n_genes))


def compare(
    directory: RunDirectory,
    judge: CountingEvaluator,
    *,
    counts: Mapping[str, int] = COUNTS,
    plan: LadderPlan = PLAN,
    observer: SilentObserver | None = None,
    n_threads: int = 1,
) -> RandomOutcome:
    executor = InProcessExecutor(judge, n_threads, chunk_size=4)
    try:
        return compare_at_random(
            directory, tiny_space(), BUDGETS, executor, plan, counts, seed=3, observer=observer or SilentObserver()
        )
    finally:
        executor.close()


def assert_equal(first: RandomOutcome, second: RandomOutcome) -> None:
    assert first.evaluations == second.evaluations
    assert first.best is not None
    assert second.best is not None
    np.testing.assert_array_equal(first.best.genome, second.best.genome)


def test_random_genomes_hold_the_budgets_and_longer_draws_begin_as_shorter_ones() -> None:
    space = tiny_space()
    genomes = random_genomes(space, BUDGETS, 100, seed=1)
    assert len({genome_digest(genome) for genome in genomes}) == 100
    assert (space.macs(genomes) <= 0.5 * space.macs_dense).all()
    assert (space.n_params(genomes) <= 0.6 * space.n_params_dense).all()
    np.testing.assert_array_equal(random_genomes(space, BUDGETS, 70, seed=1), genomes[:70])
    assert (random_genomes(space, BUDGETS, 100, seed=2) != genomes).any()
    assert random_genomes(space, BUDGETS, 0, seed=1).shape == (0, space.n_genes)


def test_a_space_that_holds_fewer_genomes_gives_fewer() -> None:
    space = tiny_space()
    tightest = {"macs": space.macs_range[0] / space.macs_dense}
    genomes = random_genomes(space, tightest, 10_000, seed=0)
    assert 0 < len(genomes) < 10_000
    assert (space.macs(genomes) == space.macs_range[0]).all()


def test_the_best_of_as_many_genomes_is_found_by_the_dearest_rung(tmp_path: Path) -> None:
    judge = evaluator()
    outcome = compare(make_run(tmp_path / "run"), judge)
    genomes = random_genomes(tiny_space(), BUDGETS, 30, seed=3)
    expected = evaluator().evaluate(genomes, "network")
    assert outcome.evaluations["network"] == expected
    order = sorted(range(30), key=lambda row: expected[row].objective)[:5]
    elites = evaluator().evaluate(genomes[order], "dear")
    assert outcome.evaluations["dear"] == elites
    assert outcome.best is not None
    best = min(elites, key=lambda evaluation: evaluation.objective)
    assert (outcome.best.digest, outcome.best.objective, outcome.best.rung) == (best.digest, best.objective, "dear")
    assert genome_digest(outcome.best.genome) == best.digest
    assert [judge.seen.count((e.digest, e.rung)) for e in (*expected, *elites)] == [1] * 35
    assert len(judge.seen) == 35


def test_without_elites_the_judge_decides(tmp_path: Path) -> None:
    outcome = compare(make_run(tmp_path / "run"), evaluator(), plan=LadderPlan("network"))
    assert outcome.best is not None
    assert outcome.best.objective == min(e.objective for e in outcome.evaluations["network"])
    assert list(outcome.evaluations) == ["network"]


def test_stopped_anywhere_it_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    whole = compare(make_run(tmp_path / "whole"), evaluator(), n_threads=3)

    class Stopping(SilentObserver):
        def __init__(self, n_done: float) -> None:
            self.n_done, self.is_reached = n_done, False

        def on_step(self, n_done: float, figures: Mapping[str, float]) -> None:  # noqa: ARG002 - protocol
            self.is_reached |= n_done >= self.n_done

        def should_stop(self) -> bool:
            return self.is_reached

    directory, judge = make_run(tmp_path / "run"), evaluator()
    for n_done in (9, 26, 34):
        with pytest.raises(InterruptedRunError, match="networks of random search; continue with: evoprune resume"):
            compare(directory, judge, observer=Stopping(n_done))
    outcome = compare(directory, judge)
    assert_equal(outcome, whole)
    assert outcome.earlier_s > 0
    assert len(set(judge.seen)) == 35


def test_a_longer_comparison_judges_only_what_is_new(tmp_path: Path) -> None:
    directory, judge = make_run(tmp_path / "run"), evaluator()
    compare(directory, judge, counts={"network": 20, "dear": 2})
    longer = compare(directory, judge)
    assert_equal(longer, compare(make_run(tmp_path / "whole"), evaluator()))
    assert [rung for _, rung in judge.seen].count("network") == 30
    with EvaluationStore(directory.random_path / "evaluations.sqlite", read_only=True) as store:
        assert store.count_by_rung()["network"] == 30


def test_where_every_evaluation_fails_there_is_no_best(tmp_path: Path) -> None:
    outcome = compare(make_run(tmp_path / "run"), Hopeless(make_target(tiny_space().n_genes)))
    assert outcome.best is None
    assert len(outcome.evaluations["network"]) == 30
    assert "dear" not in outcome.evaluations
