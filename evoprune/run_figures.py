"""The figures of a finished run, put together from what its parts found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from evoprune.callbacks import SearchOutcome
from evoprune.comparison import RandomOutcome
from evoprune.evaluation_store import EvaluationStore
from evoprune.finishing import RIVAL_ACCURACY, baseline_genome, fitness_options
from evoprune.fitness_plan import objective_name
from evoprune.options import SearchOptions
from evoprune.preparation import Preparation
from evoprune.result import (
    BudgetFigures,
    LatencyFigures,
    ObjectiveFigures,
    RandomSearchFigures,
    RungFigures,
    SearchResult,
)
from evoprune.run_directory import RunDirectory
from fitness.evaluation import Evaluation
from fitness.precision import candidate_dtype
from search_spaces.cost import whole_limit
from search_spaces.genome import BoolArray

_PRECISIONS = {torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True)
class Findings:
    """What the parts of a finished run found.

    Attributes:
        outcome: How the search ended; it has a best genome.
        rungs: What each rung did.
        failures: How many evaluations failed for which reason.
        accuracies: Test accuracies by their names in the result.
        uncompensated: Layers of the small network that keep their weights.
        random: What random search found, where it was asked for.
        latency: What the networks take, where a latency is budgeted.
        wall_s: Seconds of the run.
    """

    outcome: SearchOutcome
    rungs: dict[str, RungFigures]
    failures: Mapping[str, int]
    accuracies: Mapping[str, float]
    uncompensated: tuple[str, ...]
    random: RandomOutcome | None
    latency: LatencyFigures | None
    wall_s: float


def run_result(run: RunDirectory, options: SearchOptions, preparation: Preparation, findings: Findings) -> SearchResult:
    """Return the figures of ``run``."""
    outcome = findings.outcome
    assert outcome.best is not None
    space, fitness = preparation.space, fitness_options(options, preparation)
    best = outcome.best.genome[None]
    baseline = baseline_genome(options, preparation, outcome.best.genome)[None]
    accuracies = dict(findings.accuracies)
    random_accuracy = accuracies.pop(RIVAL_ACCURACY, None)
    return SearchResult(
        run=run.path,
        model=preparation.dense.name,
        data=preparation.data.name,
        weights=preparation.dense.source,
        seed=options.seed,
        mode=options.mode,
        budgets=tuple(_budget_figures(metric, preparation, best, baseline) for metric in preparation.budgets),
        genome_digest=outcome.best.digest,
        macs=int(space.macs(best)[0]),
        macs_dense=space.macs_dense,
        n_params=int(space.n_params(best)[0]),
        n_params_dense=space.n_params_dense,
        n_test_images=len(preparation.data.test),
        adaptation=fitness.final_compensation,
        baseline_uniform_l1_macs=int(space.macs(baseline)[0]),
        baseline_uniform_l1_n_params=int(space.n_params(baseline)[0]),
        uncompensated_layers=findings.uncompensated,
        fitness=options.fitness,
        objective=ObjectiveFigures(
            name=objective_name(outcome.best.rung, options.objective),
            value=outcome.best.objective,
            rung=outcome.best.rung,
            fitness_images=fitness.fitness_images,
            n_images=findings.rungs[outcome.best.rung].n_images,
        ),
        rungs=findings.rungs,
        stopped_by=outcome.reason,
        n_generations=outcome.generation,
        n_evaluations=outcome.n_evaluations,
        n_cached=outcome.n_cached,
        n_failed=sum(findings.failures.values()),
        failures=dict(findings.failures),
        search_s=outcome.elapsed_s,
        wall_s=findings.wall_s,
        device=str(preparation.device),
        precision=_PRECISIONS[candidate_dtype(preparation.dense.model, space, preparation.device)],
        workers=options.workers,
        latency=findings.latency,
        random_search=_random_figures(findings.random, random_accuracy, preparation),
        **accuracies,
    )


def rung_figures(store: EvaluationStore, rungs: Sequence[str]) -> dict[str, RungFigures]:
    """Return what each of ``rungs`` did, in their order; a rung that was never asked is left out."""
    by_rung = {rung: [record.evaluation for record in store.records(rung)] for rung in rungs}
    return {rung: _rung_figures(evaluations) for rung, evaluations in by_rung.items() if evaluations}


def _rung_figures(evaluations: Iterable[Evaluation]) -> RungFigures:
    made = list(evaluations)
    return RungFigures(
        n_evaluations=len(made),
        n_failed=sum(bool(evaluation.failure) for evaluation in made),
        n_images=max(evaluation.n_images for evaluation in made),
        seconds=sum(evaluation.seconds for evaluation in made),
        n_stopped=sum(evaluation.is_stopped for evaluation in made),
    )


def _random_figures(
    random: RandomOutcome | None, test_accuracy: float | None, preparation: Preparation
) -> RandomSearchFigures | None:
    if random is None or random.best is None or test_accuracy is None:
        return None
    space, genome = preparation.space, random.best.genome[None]
    return RandomSearchFigures(
        genome_digest=random.best.digest,
        objective=random.best.objective,
        rung=random.best.rung,
        rungs={rung: _rung_figures(evaluations) for rung, evaluations in random.evaluations.items()},
        macs=int(space.macs(genome)[0]),
        n_params=int(space.n_params(genome)[0]),
        costs={metric: int(space.cost(metric, genome)[0]) for metric in preparation.budgets},
        test_accuracy=test_accuracy,
    )


def _budget_figures(metric: str, preparation: Preparation, best: BoolArray, baseline: BoolArray) -> BudgetFigures:
    space, share = preparation.space, preparation.budgets[metric]
    cost_dense = space.cost_range(metric)[1]
    return BudgetFigures(
        metric=metric,
        unit=space.costs[metric].unit,
        budget=share,
        limit=whole_limit(share, cost_dense),
        cost=int(space.cost(metric, best)[0]),
        cost_dense=cost_dense,
        baseline_uniform_l1_cost=int(space.cost(metric, baseline)[0]),
    )
