"""Executors: results by index, whatever the number of workers; failures are values; one torch thread per worker."""

from __future__ import annotations

import math
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from evoprune.execution import InProcessExecutor
from evoprune.execution.protocol import collect
from fitness.evaluation import Evaluation
from search_spaces.errors import ExecutionError, OptionError
from search_spaces.genome import BoolArray, genome_digest
from tests.evoprune.fakes import CountingEvaluator, StoppingFake, make_target

N_GENES = 37


@pytest.fixture
def genomes() -> BoolArray:
    return np.random.default_rng(0).random((23, N_GENES)) < 0.5


@pytest.mark.parametrize("n_threads", [1, 2, 5])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 100])
def test_results_do_not_depend_on_threads_or_chunks(genomes: BoolArray, n_threads: int, chunk_size: int | None) -> None:
    evaluator = CountingEvaluator(make_target(N_GENES))
    executor = InProcessExecutor(evaluator, n_threads, chunk_size=chunk_size)
    evaluations = executor.evaluate(genomes, "network")
    executor.close()
    assert [e.digest for e in evaluations] == [genome_digest(g) for g in genomes]
    assert {e.metrics["n_threads"] for e in evaluations} == {1.0}
    target, weights = make_target(N_GENES), np.sin(np.arange(N_GENES)) + 1.5
    np.testing.assert_allclose([e.objective for e in evaluations], ((genomes != target) * weights).mean(1), rtol=1e-6)


def test_the_caller_keeps_its_number_of_torch_threads(genomes: BoolArray) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        executor = InProcessExecutor(CountingEvaluator(make_target(N_GENES)), 2)
        executor.evaluate(genomes, "network")
        assert torch.get_num_threads() == 3
        in_new_thread: list[int] = []
        thread = threading.Thread(target=lambda: in_new_thread.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert in_new_thread == [3]
        executor.close()
    finally:
        torch.set_num_threads(before)


def test_an_accelerator_gets_one_thread() -> None:
    executor = InProcessExecutor(CountingEvaluator(make_target(N_GENES)), device="cuda")
    assert executor.n_workers == 1
    executor.close()


def test_a_genome_that_raises_fails_alone(genomes: BoolArray) -> None:
    bad = genome_digest(genomes[5])
    executor = InProcessExecutor(CountingEvaluator(make_target(N_GENES), raise_on=frozenset([bad])), 2, chunk_size=4)
    evaluations = executor.evaluate(genomes, "network")
    executor.close()
    assert [e.digest for e in evaluations if e.failure] == [bad]
    assert evaluations[5].objective == math.inf
    assert evaluations[5].failure.startswith("ArithmeticError: this genome is not to be evaluated (at fakes.py:")


def test_no_genomes_no_evaluations(genomes: BoolArray) -> None:
    executor = InProcessExecutor(CountingEvaluator(make_target(N_GENES)), 2)
    assert executor.evaluate(genomes[:0], "network") == []
    executor.close()
    executor.close()


class _WrongEvaluator(CountingEvaluator):
    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        return super().evaluate(genomes, rung)[::-1]


def test_an_evaluator_that_answers_for_others_is_a_defect(genomes: BoolArray) -> None:
    executor = InProcessExecutor(_WrongEvaluator(make_target(N_GENES)), 1, chunk_size=4)
    with pytest.raises(ExecutionError, match=r"mend _WrongEvaluator\.evaluate"):
        executor.evaluate(genomes, "network")
    executor.close()


def test_an_abandoned_stream_begins_nothing_new(genomes: BoolArray) -> None:
    evaluator = CountingEvaluator(make_target(N_GENES))
    executor = InProcessExecutor(evaluator, 1, chunk_size=1)
    stream = executor.stream(genomes, "network")
    next(stream)
    stream.close()
    executor.close()
    assert len(set(evaluator.seen)) == len(evaluator.seen) <= len(genomes)


@pytest.mark.parametrize(("n_threads", "chunk_size"), [(0, 1), (-1, 1), (1, 0)])
def test_wrong_numbers_are_refused(n_threads: int, chunk_size: int) -> None:
    with pytest.raises(OptionError, match="must be at least 1"):
        InProcessExecutor(CountingEvaluator(make_target(N_GENES)), n_threads, chunk_size=chunk_size)


def test_importing_the_packages_does_not_import_ray() -> None:
    code = (
        "import sys, evoprune, evoprune.execution, evoprune.search, evoprune.checkpoint, evoprune.evaluation_store; "
        "sys.exit('ray' in sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_libraries_compute_with_one_thread_while_genomes_are_evaluated(genomes: BoolArray) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        executor = InProcessExecutor(CountingEvaluator(make_target(N_GENES)), 2, chunk_size=4)
        seen = {torch.get_num_threads() for _ in executor.stream(genomes, "network")}
        executor.close()
        assert seen == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_evaluator_that_can_stop_is_told_the_limit_and_another_is_not(genomes: BoolArray) -> None:
    whole = CountingEvaluator(make_target(N_GENES)).evaluate(genomes, "network")
    limit = sorted(evaluation.objective for evaluation in whole)[5]
    for evaluator, n_stopped in (
        (StoppingFake(make_target(N_GENES)), 17),
        (CountingEvaluator(make_target(N_GENES)), 0),
    ):
        executor = InProcessExecutor(evaluator, 2)
        found = collect(executor.stream(genomes, "network", limit), len(genomes))
        assert executor.evaluate(genomes, "network") == whole
        executor.close()
        assert sum(evaluation.is_stopped for evaluation in found) == n_stopped
        assert [e for e in found if not e.is_stopped] == [
            w for e, w in zip(found, whole, strict=True) if not e.is_stopped
        ]


def test_with_a_limit_too_a_genome_that_raises_fails_alone(genomes: BoolArray) -> None:
    bad = genome_digest(genomes[3])
    executor = InProcessExecutor(StoppingFake(make_target(N_GENES), raise_on=frozenset([bad])), 1, chunk_size=23)
    found = collect(executor.stream(genomes, "network", 0.0), len(genomes))
    executor.close()
    assert [e.digest for e in found if e.failure] == [bad]
    assert all(e.is_stopped for e in found if e.digest != bad)
