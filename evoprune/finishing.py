"""From the winning genome to the network that is handed back, its figures, and what it is compared with."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
from torch import nn

from evoprune.artefact import Description, added_biases, record_cost, record_genome, save_artefact
from evoprune.baseline import uniform_l1_genome
from evoprune.budget import DEFAULT_METRIC, Budgets
from evoprune.callbacks import Callback, GenerationFinished, SearchOutcome
from evoprune.evaluation_store import EvaluationStore, StoredEvaluation
from evoprune.final_tests import StopSignal, adapt_and_test
from evoprune.interruption import stop_if_asked
from evoprune.modes import MeasuresSensitivity, SensitivityCurve
from evoprune.observer import Observer
from evoprune.options import SearchOptions
from evoprune.preparation import Preparation
from evoprune.run_directory import RunDirectory, library_versions, write_atomically
from evoprune.search import Strategy
from fitness.final_network import FinalNetwork, FinalNetworks
from fitness.options import FitnessOptions
from search_spaces.errors import ExecutionError
from search_spaces.genome import BoolArray

SENSITIVITY_FILE = "sensitivity.csv"
#: What the uniform-L1 baseline always gets, whatever adapts the evolved network.
BASELINE_ADAPTATION: Final = "recalibrate"
#: Name of the test accuracy of a rival of the evolved network.
RIVAL_ACCURACY = "random_search_test_accuracy"


def finish(
    run: RunDirectory,
    options: SearchOptions,
    preparation: Preparation,
    outcome: SearchOutcome,
    observer: Observer,
    rival: BoolArray | None = None,
    cut_from: nn.Module | None = None,
) -> tuple[Mapping[str, float], tuple[str, ...]]:
    """Write the small network of ``outcome`` to ``best/`` and return its figures.

    They are the test accuracies by their names in the result, and the layers of the small network that keep their
    weights, since their regression is ill-conditioned.

    The test images are read here and nowhere before.

    Args:
        run: Where the network goes.
        options: Of the run.
        preparation: Network, images and space.
        outcome: How the search ended.
        observer: Hears of progress, and may stop the run.
        rival: ``(n_genes,)`` a genome whose network is adapted and tested as the small one is, where there is one.
        cut_from: What the small network is cut from; the dense one by default, which all others are cut from.

    Raises:
        ExecutionError: No genome was judged.
        InterruptedRunError: The observer asked to stop.
        ArtefactError: The network cannot be written.
    """
    if outcome.best is None:
        raise ExecutionError("a finished search must have judged at least one genome, but has not; start it again")
    dense, winner = preparation.dense.model, outcome.best.genome
    fitness = fitness_options(options, preparation)
    baseline = baseline_genome(options, preparation, winner)
    signal = StopSignal()

    def networks_of(whole: nn.Module, adaptation: FitnessOptions) -> FinalNetworks:
        return FinalNetworks(
            whole,
            preparation.space,
            preparation.data,
            adaptation,
            seed=options.seed,
            raise_if_stopped=signal.raise_if_stopped,
        )

    final = networks_of(dense, fitness)
    winning = final if cut_from is None else networks_of(cut_from, fitness)
    recalibrated = networks_of(dense, replace(fitness, compensation=BASELINE_ADAPTATION))
    makers = {
        "test_accuracy": partial(winning, winner),
        "test_accuracy_dense": partial(FinalNetwork, dense),
        "baseline_uniform_l1_adapted_test_accuracy": partial(final, baseline),
        **({} if rival is None else {RIVAL_ACCURACY: partial(final, rival)}),
        "baseline_uniform_l1_test_accuracy": partial(recalibrated, baseline),
    }
    accuracies: dict[str, float] = {}
    uncompensated: tuple[str, ...] = ()
    observer.on_stage("adapting and testing the networks", len(makers))
    for tested in adapt_and_test(
        makers,
        preparation.data,
        preparation.device,
        raise_if_stopped=lambda: stop_if_asked(observer, run.path, "the search"),
        signal=signal,
    ):
        accuracies[tested.name] = tested.accuracy
        if tested.name == "test_accuracy":
            network, uncompensated = tested.made
            save_artefact(run.best_path, network, describe(options, preparation, winner, network))
        observer.on_step(len(accuracies), {})
    if uncompensated:
        observer.on_note(
            f"{len(uncompensated)} layers keep their weights, since their regression is ill-conditioned: "
            f"{', '.join(uncompensated)}"
        )
    return accuracies, uncompensated


def describe(options: SearchOptions, preparation: Preparation, genome: BoolArray, network: nn.Module) -> Description:
    """Return what the artefact of the small ``network`` says."""
    data = preparation.data
    return Description(
        model=preparation.dense.record,
        space=preparation.space_record,
        genome=record_genome(preparation.space, genome),
        cost=record_cost(preparation.space, genome),
        mean=tuple(data.mean),
        std=tuple(data.std),
        seed=options.seed,
        data={"name": data.name, "content_hash": data.content_hash},
        added_biases=added_biases(network, preparation.dense.model),
        versions=library_versions(),
    )


def fitness_options(options: SearchOptions, preparation: Preparation) -> FitnessOptions:
    """Return how the candidates of this run are judged."""
    return options.fitness_options(is_trained_here=preparation.dense.is_trained_here)


def baseline_genome(options: SearchOptions, preparation: Preparation, winner: BoolArray | None = None) -> BoolArray:
    """Return the uniform-L1 genome ``(n_genes,)`` at the budgets of the run.

    Where these are no limit, it is as costly as the ``winner`` ``(n_genes,)`` by the first metric.
    """
    budgets = preparation.budgets if winner is None else budgets_to_compare_at(preparation, winner)
    return uniform_l1_genome(preparation.dense.model, preparation.space, budgets, options.seed)


def budgets_to_compare_at(preparation: Preparation, winner: BoolArray) -> Budgets:
    """Return the budgets of the run; where these are no limit, the cost of the ``winner`` by the first metric."""
    space, budgets = preparation.space, preparation.budgets
    if any(budget < 1 for budget in budgets.values()):
        return budgets
    metric = next(iter(budgets), DEFAULT_METRIC)
    cost, cost_dense = int(space.cost(metric, winner[None])[0]), space.cost_range(metric)[1]
    return {metric: min((cost + 0.5) / cost_dense, 1.0)}


def write_front(
    run: RunDirectory, store: EvaluationStore, rung: str, preparation: Preparation, *, since: int = 0
) -> None:
    """Write the genomes that no other beats in both cost and objective to ``front.csv``, cheapest first.

    The cost is that of the first budget. Costs that are neither MACs nor parameters have a column of their own. What
    was judged in generations before ``since`` does not count.
    """
    judged = (record for record in store.records(rung) if record.generation >= since)
    records = [record for record in judged if record.evaluation.is_whole]
    genomes = np.array([record.genome for record in records], np.bool_).reshape(-1, preparation.space.n_genes)
    metrics = list(preparation.budgets)
    costs = {metric: preparation.space.cost(metric, genomes).tolist() for metric in metrics}
    further = [metric for metric in metrics if metric not in ("macs", "params")]
    headings = [metric.replace("-", "_") for metric in further]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["macs", "n_params", *headings, "objective", "rung", "generation", "genome_digest"])
    for index in _non_dominated(records, costs[metrics[0]]):
        record, evaluation = records[index], records[index].evaluation
        own = [costs[metric][index] for metric in further]
        objective = repr(evaluation.objective)
        writer.writerow([record.macs, record.n_params, *own, objective, rung, record.generation, evaluation.digest])
    write_atomically(run.front_path, text.getvalue().encode())


def write_sensitivity(run: RunDirectory, curves: Sequence[SensitivityCurve]) -> None:
    """Write what cutting each part of the network alone does to ``sensitivity.csv``, one row per point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["part", "cost_share", "error", "rung"])
    for curve in curves:
        for share, error in zip(curve.cost_share, curve.error, strict=True):
            writer.writerow([curve.name, repr(float(share)), repr(float(error)), curve.rung])
    write_atomically(run.path / SENSITIVITY_FILE, text.getvalue().encode())


class SensitivityWriter(Callback):
    """Writes the sensitivity that a search measures with its first generation, so that a live run shows it.

    Args:
        run: Where to.
        search: Any strategy; nothing is written for one that measures none.
    """

    def __init__(self, run: RunDirectory, search: Strategy) -> None:
        self._run = run
        self._search = search if isinstance(search, MeasuresSensitivity) else None

    def on_generation(self, event: GenerationFinished) -> None:
        """Write the curves, where there are any and the file is not there."""
        del event
        self._write()

    def on_end(self, outcome: SearchOutcome) -> None:
        """Do so for a session that made no generation."""
        del outcome
        self._write()

    def _write(self) -> None:
        if self._search is not None and not (self._run.path / SENSITIVITY_FILE).is_file() and self._search.curves:
            write_sensitivity(self._run, self._search.curves)


def _non_dominated(records: Sequence[StoredEvaluation], costs: Sequence[int]) -> list[int]:
    """Return the indices of the records that no other beats in both cost and objective, cheapest first."""

    def key(index: int) -> tuple[int, float, str]:
        return costs[index], records[index].evaluation.objective, records[index].evaluation.digest

    front: list[int] = []
    for index in sorted(range(len(records)), key=key):
        if not front or records[index].evaluation.objective < records[front[-1]].evaluation.objective:
            front.append(index)
    return front
