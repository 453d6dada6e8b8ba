"""Measures a :class:`LatencyTable`: every layer shape alone over a grid of widths, then whole networks for the rest."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from search_spaces.cost import made_axis
from search_spaces.errors import check_rules
from search_spaces.genome import BoolArray, FloatArray
from search_spaces.latency import DTYPE_NAMES, Conditions, LatencyTable, LayerTable, bytes_per_slice
from search_spaces.layer_calls import LayerCall, layer_calls, network_digest
from search_spaces.space import SearchSpace
from search_spaces.surgery import prune_model

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}
#: Kept slices at which layers are measured; 17 and 33 stand behind the widths of common vector registers.
_GRID = (1, 4, 8, 16, 17, 24, 32, 33, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
_LEAST_TIMED_S = 2e-4
_LEAST_REPEATS = 3
_MOST_REPEATS = 50
_N_WARM_UP = 3


@dataclass(frozen=True)
class MeasurementOptions:
    """How a latency is measured.

    Attributes:
        batch_size: Samples per call.
        n_threads: Threads of one operator; fixed while it is measured.
        dtype: A name of :data:`DTYPES`.
        n_rounds: Measurements behind each median; rounds go through all widths in turn, so that a passing load meets
            all of them.
        max_points: Most grid points per axis.
        n_networks: Whole networks that the rest is fitted to.
    """

    batch_size: int = 1
    n_threads: int = 1
    dtype: str = "float32"
    n_rounds: int = 7
    max_points: int = 10
    n_networks: int = 12

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: One is out of its range.
        """
        check_rules(
            [
                ("batch_size >= 1", self.batch_size >= 1, self.batch_size),
                ("n_threads >= 1", self.n_threads >= 1, self.n_threads),
                (f"dtype in ({', '.join(DTYPES)})", self.dtype in DTYPES, self.dtype),
                ("n_rounds >= 1", self.n_rounds >= 1, self.n_rounds),
                ("max_points >= 2", self.max_points >= 2, self.max_points),
                ("n_networks >= 3", self.n_networks >= 3, self.n_networks),
            ],
            purpose="a measurement of latency",
        )


@dataclass(frozen=True)
class Measurement:
    """A table, and sliced networks that it was not fitted to.

    Attributes:
        table: What was measured and fitted.
        checked: ``(n_checks, n_genes)`` genomes of those networks, cheapest first.
        checked_ns: ``(n_checks,)`` their measured times.
    """

    table: LatencyTable
    checked: BoolArray
    checked_ns: FloatArray


def measure_latency(
    model: nn.Module,
    space: SearchSpace,
    options: MeasurementOptions,
    *,
    name: str,
    rng: np.random.Generator,
    n_checks: int = 0,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Measurement:
    """Return the latency table of ``model`` on the device that it lies on, and networks to check it on.

    The networks that the table is fitted to and those that check it are measured in turn, so that a machine which
    slows down meanwhile is no error of the table.

    Args:
        model: In evaluation mode; not changed. Its weights do not matter.
        space: Its search space.
        options: How to measure.
        name: Of the network, for the record.
        rng: Draws the networks that the rest is fitted to, and those that check it.
        n_checks: Networks to check the table on.
        on_progress: Told of finished layer shapes and their number.
    """
    calls = layer_calls(space.graph, space.layers)
    device = next(iter(model.parameters())).device
    distinct = {call.shape_key: call for call in reversed(calls)}
    keys = list(dict.fromkeys(call.shape_key for call in calls))
    tables = []
    with _threads(options.n_threads), torch.inference_mode():
        for index, key in enumerate(keys):
            tables.append(_measure_layer(distinct[key], options, device))
            on_progress(index + 1, len(keys))
    table_of_layer = tuple(keys.index(call.shape_key) for call in calls)
    conditions = Conditions(
        name,
        str(device),
        device_name(device),
        str(torch.__version__),
        options.n_threads,
        options.batch_size,
        options.dtype,
        options.n_rounds,
    )
    table = LatencyTable(network_digest(calls), conditions, tuple(tables), table_of_layer, 1.0, 0.0, 0.0)
    fitted = np.concatenate([space.all_ones(), spread_genomes(space, options.n_networks - 1, rng=rng)])
    checked = spread_genomes(space, n_checks, rng=rng)
    times = measure_networks(model, space, np.concatenate([fitted, checked]), options)
    table = _fitted(table, space, calls, fitted, times[: len(fitted)])
    return Measurement(table, checked, times[len(fitted) :])


def spread_genomes(space: SearchSpace, n: int, *, rng: np.random.Generator) -> BoolArray:
    """Return ``n`` random genomes ``(n, n_genes)`` whose MACs are spread evenly over the reachable range."""
    least, most = space.macs_range
    shares = np.linspace(max(1.05 * least / most, 0.05 + 0.95 * least / most), 0.95, n)
    genomes = [space.sample(rng=rng, n=1, macs_budget=float(np.clip(share, least / most, 1.0))) for share in shares]
    return np.concatenate(genomes) if genomes else space.all_ones(0)


def measure_networks(
    model: nn.Module, space: SearchSpace, genomes: BoolArray, options: MeasurementOptions
) -> FloatArray:
    """Return the measured time ``(n,)`` in ns of one call of each sliced network, an ordinary module in eval mode."""
    return time_networks([prune_model(model, space, genome) for genome in genomes], space, options)


def time_networks(networks: Sequence[nn.Module], space: SearchSpace, options: MeasurementOptions) -> FloatArray:
    """Return the measured time ``(n,)`` in ns of one call of each of ``networks``, which take turns.

    Args:
        networks: At least one, ordinary modules on the device to measure; they are put into eval mode and the number
            type of ``options``.
        space: Of the network that they were cut from: it knows the shapes of the inputs.
        options: How to measure.
    """
    device, dtype = next(iter(networks[0].parameters())).device, DTYPES[options.dtype]
    calls: list[Callable[[], object]] = []
    for network in networks:
        timed = network.eval().to(dtype)
        inputs = [_input(shape, options.batch_size, dtype, device) for shape in space.graph.input_shapes]
        calls.append(lambda timed=timed, inputs=inputs: timed(*inputs))  # type: ignore[misc]  # bound now, not later
    with _threads(options.n_threads), torch.inference_mode():
        return median_times(calls, options.n_rounds, device)


def median_times(calls: Sequence[Callable[[], object]], n_rounds: int, device: torch.device) -> FloatArray:
    """Return the time ``(n,)`` of each call in ns: medians over rounds that make every call in turn, after a warm-up.

    A round makes a call a few times and counts the fastest, since what else runs on a machine only ever adds time.
    """
    repeats = []
    for call in calls:
        for _ in range(_N_WARM_UP):
            call()
        n_repeats = np.ceil(_LEAST_TIMED_S / max(_seconds(call, device), 1e-9))
        repeats.append(int(np.clip(n_repeats, _LEAST_REPEATS, _MOST_REPEATS)))
    rounds = [
        [min(_seconds(call, device) for _ in range(n)) for call, n in zip(calls, repeats, strict=True)]
        for _ in range(n_rounds)
    ]
    return np.asarray(np.median(np.array(rounds).reshape(n_rounds, len(calls)), axis=0) * 1e9)


def device_name(device: torch.device) -> str:
    """Return the name of the processor behind ``device``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def grid_of(n_slices: int, unit: int, max_points: int) -> tuple[int, ...]:
    """Return at most ``max_points`` kept slices, multiples of ``unit``, from the fewest to all ``n_slices``."""
    n_units = max(n_slices // unit, 1)
    points = [count for count in _GRID if count < n_units]
    points.append(n_units)
    if len(points) > max_points:
        chosen = np.rint(np.linspace(0, len(points) - 1, max_points)).astype(int)
        points = [points[index] for index in chosen]
    return tuple(count * unit for count in points)


def _measure_layer(call: LayerCall, options: MeasurementOptions, device: torch.device) -> LayerTable:
    first = grid_of(call.weight_shape[0], call.unit, options.max_points)
    width = call.weight_shape[1]
    second = (width,) if call.record.is_depthwise else grid_of(width, 1, options.max_points)
    calls = [call.at(a, b, options.batch_size, DTYPES[options.dtype], device) for a in first for b in second]
    times = median_times(calls, options.n_rounds, device).reshape(len(first), len(second))
    return LayerTable(first, second, tuple(tuple(float(time) for time in row) for row in times))


def _fitted(
    table: LatencyTable, space: SearchSpace, calls: Sequence[LayerCall], genomes: BoolArray, measured: FloatArray
) -> LatencyTable:
    """Return ``table`` with the numbers that explain the ``measured`` times of ``genomes`` best, by relative error.

    Each number counts what :class:`search_spaces.latency.LatencyCost` does: a removed block has none of its layers.
    """
    kept = space.kept_counts(genomes)
    counts = np.rint(space.counted.macs.forms(kept)).astype(np.int64)
    alone, written, rest = (np.zeros(len(genomes)) for _ in range(3))
    for index, (call, (first, second, block)) in enumerate(zip(calls, space.counted.sides.tolist(), strict=True)):
        present = np.ones(len(genomes), np.int64) if block < 0 else kept[:, block]
        alone += present * table.tables[table.table_of_layer[index]](counts[:, first], counts[:, second])
        written += present * bytes_per_slice(call) * counts[:, (first, second)[made_axis(call.record)]]
        rest += present / len(calls)
    terms = np.stack([alone, written, rest], axis=1) / measured[:, None]
    size = np.maximum(np.linalg.norm(terms, axis=0), 1e-300)
    solution, _ = nnls(terms / size, np.ones(len(genomes)))
    scale, ns_per_byte, overhead = (solution / size).tolist()
    return LatencyTable(
        table.network, table.conditions, table.tables, table.table_of_layer, scale, ns_per_byte, overhead
    )


def _input(shape: tuple[int, ...], batch_size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    generator = torch.Generator(device=device).manual_seed(0)
    return torch.randn(batch_size, *shape[1:], dtype=dtype, device=device, generator=generator)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


@contextlib.contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    n_before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(n_before)
