"""What the networks of a finished run take when they are called, beside what the run's latency table predicts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from evoprune.artefact import load
from evoprune.budget import LATENCY
from evoprune.callbacks import SearchOutcome
from evoprune.finishing import baseline_genome
from evoprune.interruption import stop_if_asked
from evoprune.observer import Observer
from evoprune.options import SearchOptions
from evoprune.preparation import Preparation
from evoprune.result import LatencyFigures, NetworkLatency
from evoprune.run_directory import RunDirectory
from evoprune.threads import n_usable_cores
from search_spaces import SearchSpace, prune_model
from search_spaces.genome import BoolArray
from search_spaces.latency import Conditions, LatencyTable
from search_spaces.latency_measurement import MeasurementOptions, device_name, time_networks


def measure_run(
    run: RunDirectory,
    options: SearchOptions,
    preparation: Preparation,
    outcome: SearchOutcome,
    observer: Observer,
    rival: BoolArray | None = None,
) -> LatencyFigures | None:
    """Return what the networks of a run whose search has ended take; None where no latency is budgeted.

    The evolved network is the one in ``best/``, as it is handed back; the others are cut from the dense one. Nothing
    else of the run depends on these times.

    Args:
        run: Holds the evolved network.
        options: Of the run.
        preparation: The dense network, its space and the latency table.
        outcome: How the search ended.
        observer: May stop the run.
        rival: ``(n_genes,)`` the best random genome, where the run is compared with random search.

    Raises:
        ArtefactError: The evolved network cannot be read.
        InterruptedRunError: The observer asked to stop.
    """
    table, space, dense = preparation.latency_table, preparation.space, preparation.dense.model
    if table is None:
        return None
    stop_if_asked(observer, run.path, "the search")
    observer.on_stage("measuring the latency", None)
    assert outcome.best is not None
    whole, winner = space.all_ones()[0], outcome.best.genome
    baseline = baseline_genome(options, preparation, winner)
    networks = {
        "dense": (prune_model(dense, space, whole), whole),
        "evolved": (load(run.best_path, dense), winner),
        "baseline_uniform_l1": (prune_model(dense, space, baseline), baseline),
    }
    if rival is not None:
        networks["random_search"] = (prune_model(dense, space, rival), rival)
    return compare_latency(table, space, networks)


def compare_latency(
    table: LatencyTable, space: SearchSpace, networks: Mapping[str, tuple[nn.Module, BoolArray]]
) -> LatencyFigures:
    """Return what ``table`` predicts for ``networks``, and what they take here under the table's conditions.

    Threads, batch size, number type and rounds are those of the table. Nothing is measured where this machine does not
    have the device that the table speaks for; where it is another of its kind, the figures say so.

    Args:
        table: Predicts, and says how it was measured.
        space: Of the networks; its costs hold the table's predictions.
        networks: By the name of their figure, with their genomes ``(n_genes,)``. They are private copies: they are
            moved and change their number type.
    """
    conditions = table.conditions
    device = torch.device(conditions.device)
    times: list[int | None] = [None] * len(networks)
    if _is_here(device):
        options = MeasurementOptions(
            batch_size=conditions.batch_size,
            n_threads=conditions.n_threads,
            dtype=conditions.dtype,
            n_rounds=conditions.n_rounds,
        )
        modules = [network.to(device) for network, _ in networks.values()]
        times = [round(time) for time in time_networks(modules, space, options).tolist()]
    figures = {
        name: NetworkLatency(predicted_ns=int(space.cost(LATENCY, genome[None])[0]), measured_ns=time)
        for (name, (_, genome)), time in zip(networks.items(), times, strict=True)
    }
    return LatencyFigures(
        device=conditions.device,
        device_name=conditions.device_name,
        n_threads=conditions.n_threads,
        batch_size=conditions.batch_size,
        dtype=conditions.dtype,
        differences=_differences(conditions, device),
        **figures,
    )


def _is_here(device: torch.device) -> bool:
    return device.type == "cpu" or (device.type == "cuda" and (device.index or 0) < torch.cuda.device_count())


def _differences(conditions: Conditions, device: torch.device) -> tuple[str, ...]:
    """Return in what this machine differs from the one that the table was measured on, one text each."""
    if not _is_here(device):
        return (f"the table speaks for {conditions.device} ({conditions.device_name}), which this machine has not",)
    found = []
    if device_name(device) != conditions.device_name:
        found.append(f"the table speaks for {conditions.device_name}, this is {device_name(device)}")
    if str(torch.__version__) != conditions.torch_version:
        found.append(f"the table was measured with torch {conditions.torch_version}, this is {torch.__version__}")
    if device.type == "cpu" and conditions.n_threads > n_usable_cores():
        found.append(f"the table speaks for {conditions.n_threads} threads, this process may use {n_usable_cores()}")
    return tuple(found)
