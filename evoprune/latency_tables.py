"""Latency tables as files, and what ``evoprune latency`` does: measure one, and check its predictions."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from evoprune.budget import LATENCY, parse_budgets
from evoprune.interruption import stop_if_asked
from evoprune.observer import Observer
from evoprune.options import NetworkOptions, SearchOptions
from evoprune.run_directory import write_json
from search_spaces import SearchSpace
from search_spaces.errors import OptionError
from search_spaces.latency import Conditions, LatencyTable
from search_spaces.latency_measurement import MeasurementOptions, measure_latency


@dataclass(frozen=True)
class LatencyCheck:
    """Predictions against measurements of sliced networks that the table was not fitted to.

    Attributes:
        predicted_ns: Per network.
        measured_ns: Likewise.
        median_error: Median of ``|predicted - measured| / measured``.
        worst_error: The largest of them.
    """

    predicted_ns: tuple[int, ...]
    measured_ns: tuple[float, ...]
    median_error: float
    worst_error: float


@dataclass(frozen=True)
class LatencyReport:
    """What ``evoprune latency`` found.

    Attributes:
        table: The file that holds the table.
        digest: Identity of the table.
        conditions: Under which it was measured.
        n_layers: Layers of the network.
        n_shapes: Distinct ones, each measured once.
        latency_dense_ns: Predicted for the dense network.
        latency_range_ns: Smallest and largest prediction that can be reached.
        check: Against the sliced networks.
    """

    table: Path
    digest: str
    conditions: Conditions
    n_layers: int
    n_shapes: int
    latency_dense_ns: int
    latency_range_ns: tuple[int, int]
    check: LatencyCheck

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {**asdict(self), "table": str(self.table)}


def measure_and_check(
    model: nn.Module,
    space: SearchSpace,
    options: MeasurementOptions,
    *,
    name: str,
    out: Path,
    n_checks: int,
    seed: int,
    observer: Observer,
) -> LatencyReport:
    """Measure the latency table of ``model``, write it to ``out``, and compare it with ``n_checks`` sliced networks.

    Args:
        model: On the device to measure, in evaluation mode.
        space: Its search space.
        options: How to measure.
        name: Of the network, for the record.
        out: The file; replaced whole or not at all.
        n_checks: At least 1.
        seed: Of the random networks.
        observer: Hears of progress, and may stop the measurement.

    Raises:
        OptionError: ``n_checks`` is not positive.
        RunDirectoryError: ``out`` cannot be written.
        InterruptedRunError: The observer asked to stop.
    """
    if n_checks < 1:
        raise OptionError(f"`n_checks >= 1` must hold, since an unchecked table is worth little, but got {n_checks}")
    n_shapes = 0

    def on_progress(done: int, total: int) -> None:
        nonlocal n_shapes
        if not n_shapes:
            n_shapes = total
            observer.on_stage("measuring layer shapes", total)
        stop_if_asked(observer, None, f"{done} of {total} layer shapes")
        observer.on_step(done, {})
        if done == total:
            observer.on_stage("measuring sliced networks", None)

    measurement = measure_latency(
        model,
        space,
        options,
        name=name,
        rng=np.random.default_rng(seed),
        n_checks=n_checks,
        on_progress=on_progress,
    )
    table, measured = measurement.table, measurement.checked_ns
    cost = table.cost(space)
    predicted = cost(space.kept_counts(measurement.checked))
    errors = np.abs(predicted - measured) / measured
    write_json(out, table.to_json())
    lattice = space.lattice
    least, most = (int(cost(counts[None])[0]) for counts in (lattice.min_keep, lattice.sizes))
    return LatencyReport(
        table=out,
        digest=table.digest,
        conditions=table.conditions,
        n_layers=len(table.table_of_layer),
        n_shapes=len(table.tables),
        latency_dense_ns=most,
        latency_range_ns=(least, most),
        check=LatencyCheck(
            tuple(predicted.tolist()), tuple(measured.tolist()), float(np.median(errors)), float(errors.max())
        ),
    )


def check_table_is_given(
    options: SearchOptions, n_classes: int, input_shape: tuple[int, int, int], *, is_object: bool
) -> None:
    """Check that a search with a budget of latency has a table.

    Raises:
        OptionError: It has none; the message names the command that measures one of the network that is searched.
    """
    is_budgeted = LATENCY in [budget.metric for budget in parse_budgets(options.budget, options.metric)]
    if is_budgeted and options.latency_table is None:
        command = measuring_command(options, n_classes, input_shape, is_object=is_object)
        raise OptionError(
            "a budget of latency needs a table of the device that the network is to run on, but got none; measure "
            f"it there with `{command}`, then search with `--latency-table latency.json`"
        )


def measuring_command(
    options: NetworkOptions, n_classes: int, input_shape: tuple[int, int, int], *, is_object: bool
) -> str:
    """Return what measures a table of the network that is searched, whose classes and shape its images decide.

    Args:
        options: Name the network.
        n_classes: Of the images.
        input_shape: ``(C, H, W)`` of the images.
        is_object: Whether the network was given as a Python object, which no command can name.
    """
    if is_object:
        return f"evoprune.latency(model, input_shape={tuple(input_shape)}, out='latency.json')"
    args = f" --model-args {shlex.quote(json.dumps(options.model_args))}" if options.model_args else ""
    sides = "x".join(map(str, input_shape))
    model = shlex.quote(options.model)
    return f"evoprune latency --model {model}{args} --classes {n_classes} --input-shape {sides} --out latency.json"


def read_table(path: Path) -> LatencyTable:
    """Return the latency table in the file ``path``.

    Raises:
        OptionError: It cannot be read, or is no latency table.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OptionError(
            f"a latency table must be a file that `evoprune latency` wrote, but {path} cannot be read: {error}; "
            f"measure one with `evoprune latency --out {shlex.quote(str(path))}`"
        ) from None
    if not isinstance(content, dict):
        raise OptionError(
            f"a latency table must be a JSON object, but {path} holds a {type(content).__name__}; measure one with "
            f"`evoprune latency --out {shlex.quote(str(path))}`"
        )
    return LatencyTable.from_json(content, str(path))
