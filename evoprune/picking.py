"""A network of another budget out of a run that is over: nothing is searched again."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from evoprune.artefact import check_replaceable, save_artefact
from evoprune.budget import Budget
from evoprune.evaluation_store import EvaluationStore, StoredEvaluation
from evoprune.finishing import describe, fitness_options
from evoprune.options import SearchOptions
from evoprune.preparation import Preparation
from evoprune.result import PickResult
from evoprune.run_directory import RunDirectory, is_run_own, resume_command
from fitness.final_network import final_network
from search_spaces import SearchSpace
from search_spaces.cost import whole_limit
from search_spaces.errors import BudgetError, OptionError, RunDirectoryError


def pick_network(
    run: RunDirectory, options: SearchOptions, preparation: Preparation, budget: Budget, rung: str, target: Path
) -> PickResult:
    """Write the network of least objective at ``rung`` within ``budget``, adapted with all care, to ``target``.

    The test images are not read.

    Raises:
        OptionError: The run distilled between its layers, so that its candidates were cut from different networks.
        BudgetError: The budget is larger than the dense network, or nothing that was judged is within it.
        RunDirectoryError: The run has judged nothing yet.
        ArtefactError: ``target`` cannot be written.
    """
    if options.n_layer_distillation_steps:
        raise OptionError(
            "a network can be picked where all that was judged is cut from one dense network, but this run distilled "
            f"{options.n_layer_distillation_steps} steps between its layers; take the network in {run.best_path}, or "
            "search with `--mode pareto`"
        )
    space, dense, metric = preparation.space, preparation.dense.model, budget.metric
    fraction = budget.as_fraction(space.cost_range(metric)[1])
    record = _best_within(run, space, metric, fraction, rung)
    fitness = fitness_options(options, preparation)
    network = final_network(dense, space, record.genome, preparation.data, fitness, seed=options.seed)
    save_artefact(target, network, describe(options, preparation, record.genome, network))
    return PickResult(
        artefact=target,
        run=run.path,
        metric=metric,
        budget=fraction,
        objective=record.evaluation.objective,
        macs=record.macs,
        macs_dense=space.macs_dense,
        n_params=record.n_params,
        n_params_dense=space.n_params_dense,
        genome_digest=record.evaluation.digest,
        adaptation=fitness.final_compensation,
    )


def check_target(run: RunDirectory, target: Path) -> None:
    """Check, before anything is solved, that a picked network may be written to ``target``.

    Raises:
        OptionError: ``target`` is what ``result.json`` speaks of, or another place of a run's own.
        ArtefactError: It is something else than an artefact.
        RunDirectoryError: It cannot be written.
    """
    if target.resolve() == run.best_path.resolve():
        raise OptionError(
            f"a picked network must not replace the one that result.json speaks of, but --out is {target}; name "
            "another folder"
        )
    if is_run_own(target):
        raise OptionError(
            f"a picked network must not take the place of what a run holds of its own, but --out is {target}; name "
            "another folder"
        )
    check_replaceable(target)
    if not target.exists():
        RunDirectory.check_available(target)


def _best_within(run: RunDirectory, space: SearchSpace, metric: str, fraction: float, rung: str) -> StoredEvaluation:
    """Return the evaluation of least objective within the budget; of equal ones the cheapest, as in ``front.csv``."""
    judged, file = [], run.evaluations_path
    if file.is_file() and file.stat().st_size:  # a run that stopped while it was prepared has none
        with EvaluationStore(file, read_only=True) as store:
            judged = [record for record in store.records(rung) if record.evaluation.is_whole]
    if not judged:
        raise RunDirectoryError(
            f"a network can be picked once a run has judged one, but {run.path} has not; "
            f"continue it with `{resume_command(run.path)}`"
        )
    whole, cost_dense = space.cost(metric, np.stack([record.genome for record in judged])), space.cost_range(metric)[1]
    costs, within = whole / cost_dense, np.flatnonzero(whole <= whole_limit(fraction, cost_dense))
    if not len(within):
        raise BudgetError(
            f"a budget must leave a network that the run has judged, but of {len(judged)} the cheapest costs "
            f"{costs.min():.4f} and the dearest {costs.max():.4f} of the dense {metric}, and the budget is "
            f"{fraction:.4g}; raise it, or search with `--mode pareto`, which covers all costs"
        )
    return judged[
        min(within, key=lambda row: (judged[row].evaluation.objective, costs[row], judged[row].evaluation.digest))
    ]
