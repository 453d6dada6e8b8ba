"""What two runs have to agree on, and where they do not; and whether a run fills its budget."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evoprune.artefact import read_description
from evoprune.evaluation_store import EvaluationStore
from evoprune.result import SearchResult
from evoprune.run_directory import RunDirectory, read_json
from search_spaces import SearchSpace
from search_spaces.genome import BoolArray, IntArray, pack_genome, unpack_genome
from search_spaces.models import build_model

#: Figures of ``result.json`` in which equal runs may differ: times, and where the run was evaluated.
TIMES_AND_PLACES = ("wall_s", "search_s", "workers")
#: Files that equal runs have byte for byte; those that a mode does not write are missing from both.
FILES = (
    *("best/weights.safetensors", "best/evoprune.json", "front.csv", "sensitivity.csv", "knowledge.json"),
    "dense.safetensors",
)
_N_NAMED = 3

Row = Mapping[str, Any]


@dataclass(frozen=True)
class RunRecord:
    """What a finished run says but for times.

    Attributes:
        evaluations: One row each, in the order of generation, rung and position.
        generations: One row each, in order.
        result: Figures of ``result.json``.
        files: SHA-256 by name; None for a file that is not there.
        hashes: Of network, images and space.
    """

    evaluations: Sequence[Row]
    generations: Sequence[Row]
    result: Row
    files: Row
    hashes: Row


def read_run(path: Path) -> RunRecord:
    """Return what the finished run in ``path`` says.

    Raises:
        RunDirectoryError: There is none, or it is not finished or damaged.
    """
    run = RunDirectory.open_existing(path)
    with EvaluationStore(run.evaluations_path, read_only=True) as store:
        evaluations = [
            {
                "digest": record.evaluation.digest,
                "rung": record.evaluation.rung,
                "generation": record.generation,
                "position": record.position,
                "genome": pack_genome(record.genome).hex(),
                "macs": record.macs,
                "n_params": record.n_params,
                "objective": record.evaluation.objective,
                "metrics": dict(sorted(record.evaluation.metrics.items())),
                "n_images": record.evaluation.n_images,
                "failure": record.evaluation.failure,
            }
            for record in store.records()
        ]
        generations = [{name: row[name] for name in sorted(row) if name != "elapsed_s"} for row in store.generations()]
    result = {name: value for name, value in read_json(run.result_path).items() if name not in TIMES_AND_PLACES}
    result["rungs"] = {
        rung: {name: value for name, value in figures.items() if name != "seconds"}
        for rung, figures in result["rungs"].items()
    }
    hashes = {name: value for name, value in run.read_config()["hashes"].items() if name != "options"}
    return RunRecord(evaluations, generations, result, {name: _digest(path / name) for name in FILES}, hashes)


def differences(first: RunRecord, second: RunRecord) -> list[str]:
    """Return in what two runs differ, one text per value with place and both values; empty where they are equal.

    Values are compared exactly: the last bit of a float counts, NaN equals itself.
    """
    found = []
    for what, rows, others in (
        ("input", [first.hashes], [second.hashes]),
        ("evaluation", first.evaluations, second.evaluations),
        ("generation", first.generations, second.generations),
        ("result", [first.result], [second.result]),
        ("file", [first.files], [second.files]),
    ):
        if len(rows) != len(others):
            found.append(f"{what}s: {len(rows)} and {len(others)}")
        for index, (row, other) in enumerate(zip(rows, others, strict=False)):
            place = f"{what} {index}" if what in ("evaluation", "generation") else what
            found += [
                f"{place}: {name} is {row.get(name, 'missing')!r} and {other.get(name, 'missing')!r}"
                for name in [*row, *(name for name in other if name not in row)]
                if repr(row.get(name, "missing")) != repr(other.get(name, "missing"))
            ]
    return found


def named(found: Sequence[str]) -> str:
    """Return the first of ``found`` differences as one text."""
    more = f"; and {len(found) - _N_NAMED} more" if len(found) > _N_NAMED else ""
    return "; ".join(found[:_N_NAMED]) + more


@dataclass(frozen=True)
class BudgetUse:
    """How much of its budgets a network uses.

    Attributes:
        share: The largest share of a budget that is used.
        problem: Why the budgets do not hold from below within one channel group; empty where they do.
    """

    share: float
    problem: str = ""


def budget_use(path: Path, *, has_to_fill: bool) -> BudgetUse:
    """Return how the network in ``best/`` of the finished run ``path`` uses the run's budgets.

    The costs are counted anew from the genome of the artefact.

    Args:
        path: A run directory.
        has_to_fill: Whether it is a problem that a further channel fits into every group.

    Raises:
        RunDirectoryError: The run is damaged.
        ArtefactError: It has no network.
    """
    result = SearchResult.from_json(path, read_json(RunDirectory.open_existing(path).result_path))
    description = read_description(path / "best")
    record = description.model
    assert record.name is not None  # a run of the command line
    model = build_model(record.name, record.n_classes, record.args, record.input_shape).eval()
    space = description.space.trace(model, record.input_shape, verify=False)
    genome = unpack_genome(bytes.fromhex(description.genome.packed), space.n_genes)
    recorded = {figures.metric: figures.cost for figures in result.budgets}
    limits = {figures.metric: figures.limit for figures in result.budgets}
    return use_of(space, genome, limits, recorded, has_to_fill=has_to_fill)


def use_of(
    space: SearchSpace,
    genome: BoolArray,
    limits: Mapping[str, int],
    recorded: Mapping[str, int],
    *,
    has_to_fill: bool = True,
) -> BudgetUse:
    """Return how ``genome`` ``(n_genes,)`` uses ``limits``, in whole units by metric.

    They hold from below within one channel group where no cost is above its limit, and what is left of one of them is
    less than what a further channel costs in some group.

    Args:
        space: The search space.
        genome: Of the network.
        limits: At least one; costs that the space knows.
        recorded: The costs that the run says, by metric.
        has_to_fill: Whether it is a problem that much is left.
    """
    costs = {metric: int(space.cost(metric, genome[None])[0]) for metric in limits}
    share = max(costs[metric] / limit for metric, limit in limits.items())
    for metric, limit in limits.items():
        if costs[metric] != recorded.get(metric):
            return BudgetUse(share, f"{metric} are {costs[metric]}, but the run says {recorded.get(metric)}")
        if costs[metric] > limit:
            return BudgetUse(share, f"{metric} are {costs[metric]}, above the limit of {limit}")
    larger = _with_one_more(space, genome)
    if (
        not has_to_fill
        or not len(larger)
        or any((space.costs[metric](larger) > limit).any() for metric, limit in limits.items())
    ):
        return BudgetUse(share)
    left = ", ".join(f"{limit - costs[metric]} of {limit} {metric}" for metric, limit in limits.items())
    return BudgetUse(share, f"{left} are left: room for a further channel in each of {len(larger)} groups")


def _with_one_more(space: SearchSpace, genome: BoolArray) -> IntArray:
    """Return the kept counts ``(n, n_groups)`` of ``genome`` with one step more in each group that has room."""
    counts = space.kept_counts(genome[None])
    larger = np.repeat(counts, len(space.groups), axis=0)
    np.fill_diagonal(larger, space.lattice.above(counts)[0])
    return larger[(larger > counts).any(axis=1)]


def _digest(file: Path) -> str | None:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
