"""Random search beside a finished search: as many random genomes, judged alike, the best of them by the same rung.

Nothing has to be saved but the evaluations: the genomes follow from the master seed. A comparison that was killed draws
them again and finds what was judged in its store; one that is continued with more of them begins with the same ones.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from evoprune.answering import answer_request
from evoprune.budget import Budgets
from evoprune.evaluation_store import EvaluationStore, StoredEvaluation
from evoprune.execution import Executor
from evoprune.interruption import InterruptedRunError, first_interrupt_sets
from evoprune.observer import Observer
from evoprune.run_directory import RunDirectory
from evoprune.search import BestGenome, EvaluationRequest, LadderPlan, Repairer, make_generator
from evoprune.search.initialisation import DistinctGenomes
from fitness.evaluation import Evaluation
from search_spaces import SearchSpace
from search_spaces.errors import RunDirectoryError
from search_spaces.genome import BoolArray, genome_digest

RANDOM = "random"
#: What a search may be compared with, besides uniform L1, by the name that ``--compare`` takes.
COMPARISONS: Mapping[str, str] = {
    RANDOM: "as many random genomes under the budget, judged by the same rungs; costs as much as the search"
}
#: Genomes per draw; not an option, so that a longer comparison begins as a shorter one.
_N_PER_DRAW = 64
_N_FURTHER_DRAWS = 20


@dataclass(frozen=True)
class RandomOutcome:
    """What random search found.

    Attributes:
        best: The best genome; None where every evaluation failed.
        evaluations: By rung, the judge first.
        earlier_s: Seconds that sessions before this one spent.
    """

    best: BestGenome | None
    evaluations: Mapping[str, Sequence[Evaluation]]
    earlier_s: float


def compare_at_random(
    run: RunDirectory,
    space: SearchSpace,
    budgets: Budgets,
    executor: Executor,
    plan: LadderPlan,
    n_evaluations: Mapping[str, int],
    *,
    seed: int,
    observer: Observer,
) -> RandomOutcome:
    """Return what random search finds with as many evaluations at the judge and the elite rung as the search had.

    All genomes are drawn under the budgets and judged; then the best of them see the elite rung, as many as the search
    showed it. No criterion, screen or surrogate has a part. Equal arguments give equal outcomes, for any number of
    workers and interruptions.

    Args:
        run: The evaluations are kept in its folder ``random``.
        space: The search space.
        budgets: Shares in (0, 1] of the dense costs by metric; all hold.
        executor: Where genomes are evaluated; stays open.
        plan: The rungs of the search.
        n_evaluations: Evaluations of the search by rung. In a space that holds fewer genomes there are fewer.
        seed: Master seed.
        observer: Hears of progress, and may stop the comparison.

    Raises:
        InterruptedRunError: The user stopped it; it says how to go on.
        ExecutionError: Workers cannot be had.
        RunDirectoryError: The run directory cannot be written.
    """
    genomes = random_genomes(space, budgets, n_evaluations.get(plan.judge, 0), seed=seed)
    n_elites = 0 if plan.elite is None else min(n_evaluations.get(plan.elite, 0), len(genomes))
    observer.on_stage("random search, to compare with", len(genomes) + n_elites)
    try:
        run.random_path.mkdir(exist_ok=True)
    except OSError as error:
        raise RunDirectoryError(
            f"{str(run.random_path)!r} must be a folder that can be written, but {error.strerror}; free some space"
        ) from error
    with EvaluationStore(run.random_path / "evaluations.sqlite", space.n_genes, space.fingerprint) as store:
        judging = _Judging(run, space, executor, store, observer)
        judged = judging.evaluate("judge", plan.judge, genomes)
        evaluations = {plan.judge: judged}
        best = _best(genomes, judged)
        if plan.elite is not None and n_elites and best is not None:
            order = np.argsort([evaluation.objective for evaluation in judged], kind="stable")
            elites = genomes[order[:n_elites]]
            evaluations[plan.elite] = judging.evaluate("elite", plan.elite, elites)
            best = _best(elites, evaluations[plan.elite]) or best
    return RandomOutcome(best, evaluations, judging.earlier_s)


def random_genomes(space: SearchSpace, budgets: Budgets, n: int, *, seed: int) -> BoolArray:
    """Return ``(n, n_genes)`` distinct random genomes within ``budgets``, fewer in a space that hardly holds so many.

    Of two numbers the smaller one gives the beginning of what the larger one gives.

    Raises:
        BudgetError: A budget cannot be reached.
    """
    repairer = Repairer(space, dict(budgets))
    found = DistinctGenomes(n)
    for number in range(math.ceil(n / _N_PER_DRAW) + _N_FURTHER_DRAWS):
        if len(found) < n:
            found.add(repairer.sample(_N_PER_DRAW, rng=make_generator(seed, "comparison", number)))
    return found.genomes() if len(found) else space.all_ones(0)


class _Judging:
    """Evaluates genomes, shows how far it is, and stops where it is asked to."""

    def __init__(
        self, run: RunDirectory, space: SearchSpace, executor: Executor, store: EvaluationStore, observer: Observer
    ) -> None:
        self._run, self._space, self._executor, self._store, self._observer = run, space, executor, store, observer
        self.earlier_s = float(store.status().get("elapsed_s", 0.0))
        self._started = time.monotonic()
        self._n_done = 0  # at the rungs before the present one

    def evaluate(self, role: Literal["judge", "elite"], rung: str, genomes: BoolArray) -> list[Evaluation]:
        """Return the evaluations of ``genomes`` ``(n, n_genes)`` at ``rung``.

        Raises:
            InterruptedRunError: The user asked to stop.
        """
        digests = tuple(genome_digest(genome) for genome in genomes)
        request = EvaluationRequest(0 if role == "judge" else 1, rung, role, genomes, digests)
        stop = threading.Event()

        def on_known(records: Sequence[StoredEvaluation]) -> None:
            self._observer.on_step(self._n_done + len(records), {})

        def on_chunk(evaluations: tuple[Evaluation, ...], n_done: int) -> None:
            del evaluations
            self._store.put_course({"elapsed_s": self.earlier_s + time.monotonic() - self._started})
            self._observer.on_step(self._n_done + n_done, {})
            if stop.is_set() or self._observer.should_stop():
                raise InterruptedRunError(self._run.path, f"{self._n_done + n_done} networks of random search")

        try:
            with first_interrupt_sets(stop):
                evaluations = answer_request(
                    request, self._space, self._executor, self._store, on_known=on_known, on_chunk=on_chunk
                )
        except KeyboardInterrupt:
            raise InterruptedRunError(self._run.path, "a part of random search") from None
        self._n_done += len(digests)
        return evaluations


def _best(genomes: BoolArray, evaluations: Sequence[Evaluation]) -> BestGenome | None:
    """Return the genome of the least objective, of equal ones the first; None where every evaluation failed."""
    index = min(range(len(evaluations)), key=lambda row: evaluations[row].objective, default=None)
    if index is None or not math.isfinite(evaluations[index].objective):
        return None
    best = evaluations[index]
    return BestGenome(genomes[index], best.digest, best.objective, best.rung)
