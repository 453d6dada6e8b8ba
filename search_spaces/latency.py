"""Latency as a cost: a measured table per layer shape, interpolated, with what lies between the layers calibrated.

The predicted time of a network is a sum over its convolutions and linear layers::

    time = sum over layers ( scale * table(kept slices) + ns_per_byte * bytes written + overhead / n_layers )

``table`` is measured for the layer alone, over a grid of kept slices along the first and the second axis of its weight,
and interpolated bilinearly between the points of the grid. The other three numbers are fitted to whole sliced networks:
``overhead`` is what does not depend on widths, ``ns_per_byte`` what norms, non-linearities and sums take for each byte
that layers write, ``scale`` how much faster or slower a layer runs inside the network than alone.

Real times are no smooth function of widths, and wider is sometimes faster. The table is made monotone before it is used
(the mean of its largest monotone minorant and its least monotone majorant), so that a network which loses channels is
never predicted to be slower: repair can then hold a budget from below, and every budget above the smallest network's
time can be met. Times are whole nanoseconds, so sums are exact and equal everywhere.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from search_spaces.cost import BYTES_PER_ACTIVATION, CountForms, made_axis
from search_spaces.errors import OptionError
from search_spaces.genome import FloatArray, IntArray
from search_spaces.layer_calls import LayerCall, layer_calls, network_digest
from search_spaces.space import SearchSpace

SCHEMA_VERSION = 1
#: Number types that networks are measured in.
DTYPE_NAMES = ("float32", "bfloat16")
_DEVICE = re.compile(r"cpu|cuda(:[0-9]+)?")


@dataclass(frozen=True)
class LayerTable:
    """Measured times of one layer shape.

    Attributes:
        first: ``(n_first,)`` kept slices along the first axis of the weight, growing; the last is all of them.
        second: ``(n_second,)`` likewise along the second axis.
        times_ns: ``(n_first, n_second)`` medians.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    times_ns: tuple[tuple[float, ...], ...]

    @functools.cached_property
    def monotone_ns(self) -> FloatArray:
        """The times made monotone along both axes, ``(n_first, n_second)``."""
        times = np.array(self.times_ns)
        above = np.maximum.accumulate(np.maximum.accumulate(times, axis=0), axis=1)
        flipped = times[::-1, ::-1]
        below = np.minimum.accumulate(np.minimum.accumulate(flipped, axis=0), axis=1)[::-1, ::-1]
        return np.asarray((above + below) / 2)

    @functools.cached_property
    def _cells(self) -> list[tuple[IntArray, IntArray, FloatArray]]:
        """Per axis, for every kept count: the grid points around it and how far it lies towards the second."""
        found = []
        for axis in (self.first, self.second):
            grid = np.array(axis, np.int64)
            counts = np.clip(np.arange(grid[-1] + 1), grid[0], grid[-1])
            low = np.minimum(np.searchsorted(grid, counts, side="right") - 1, max(len(grid) - 2, 0))
            high = np.minimum(low + 1, len(grid) - 1)
            share = (counts - grid[low]) / np.maximum(grid[high] - grid[low], 1)
            found.append((low, high, share))
        return found

    def __call__(self, first: IntArray, second: IntArray) -> FloatArray:
        """Return the interpolated time ``(n,)`` in ns of layers that keep so many slices along their two axes."""
        (low, high, share), (low2, high2, share2) = self._cells
        a, b, t = low[first], high[first], share[first]
        c, d, s = low2[second], high2[second], share2[second]
        values = self.monotone_ns
        return np.asarray(
            (1 - t) * ((1 - s) * values[a, c] + s * values[a, d]) + t * ((1 - s) * values[b, c] + s * values[b, d])
        )


@dataclass(frozen=True)
class Conditions:
    """Under which a table was measured; all of it is recorded, and a table speaks for nothing else.

    Attributes:
        model: Name of the network.
        device: ``cpu`` or ``cuda:N``.
        device_name: Name of the processor.
        torch_version: Of the library that ran it.
        n_threads: Threads of one operator.
        batch_size: Samples per call.
        dtype: ``float32`` or ``bfloat16``.
        n_rounds: Measurements behind each median.
    """

    model: str
    device: str
    device_name: str
    torch_version: str
    n_threads: int
    batch_size: int
    dtype: str
    n_rounds: int


@dataclass(frozen=True)
class LatencyTable:
    """What was measured of one network on one device; predicts the latency of every network of its space.

    Attributes:
        network: Identity of the network's layers and their shapes.
        conditions: Under which it was measured.
        tables: One per distinct layer shape.
        table_of_layer: Index of the table of every layer, in order of execution.
        scale: Factor of the tables.
        ns_per_byte: Time per byte that the layers write, for what lies between them.
        overhead_ns: Time that no width changes; removed residual blocks take their layers' share along.
    """

    network: str
    conditions: Conditions
    tables: tuple[LayerTable, ...]
    table_of_layer: tuple[int, ...]
    scale: float
    ns_per_byte: float
    overhead_ns: float

    @property
    def digest(self) -> str:
        """Identity of the table and all that it holds, 64 hexadecimal digits."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def cost(self, space: SearchSpace) -> LatencyCost:
        """Return the latency of one call, in ns, as a function of the genomes of ``space``.

        Raises:
            OptionError: The table was measured for a network of other layers or shapes.
        """
        calls = layer_calls(space.graph, space.layers)
        if network_digest(calls) != self.network:
            raise OptionError(
                "a latency table must be measured for the network that is searched, but this one is of "
                f"{self.conditions.model!r} with {len(self.table_of_layer)} layers, whose names or shapes are not "
                f"those of the {len(calls)} layers here; measure one with `evoprune latency` and the same --model, "
                "--model-args, --classes and --input-shape"
            )
        share = self.overhead_ns / max(len(calls), 1)
        sides = space.counted.sides.tolist()
        layers = tuple(
            _LayerTime(
                self.tables[self.table_of_layer[index]],
                first,
                second,
                block,
                axis=made_axis(call.record),
                scale=self.scale,
                ns_per_slice=self.ns_per_byte * bytes_per_slice(call),
                overhead_ns=share,
            )
            for index, (call, (first, second, block)) in enumerate(zip(calls, sides, strict=True))
        )
        return LatencyCost(space.counted.macs.forms, layers)

    def to_json(self) -> dict[str, Any]:
        """Return the table as JSON values."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any], place: str) -> LatencyTable:
        """Return the table that ``content`` of the file ``place`` holds.

        Raises:
            OptionError: It is of another version, or damaged.
        """
        if content.get("schema_version") != SCHEMA_VERSION:
            raise OptionError(
                f"{place} must be a latency table of version {SCHEMA_VERSION}, but its `schema_version` is "
                f"{content.get('schema_version')!r}; write one with `evoprune latency --out {place}`"
            )
        try:
            table = cls(
                network=str(content["network"]),
                conditions=_conditions(content["conditions"]),
                tables=tuple(_layer_table(item) for item in content["tables"]),
                table_of_layer=tuple(int(index) for index in content["table_of_layer"]),
                **{name: _not_negative(content[name]) for name in ("scale", "ns_per_byte", "overhead_ns")},
            )
            if not all(0 <= index < len(table.tables) for index in table.table_of_layer):
                raise ValueError("`table_of_layer` names a table that is not there")
        except (KeyError, TypeError, ValueError) as error:
            raise OptionError(
                f"the latency table {place} is damaged: {type(error).__name__}: {error}; measure it again with "
                f"`evoprune latency --out {place}`"
            ) from error
        return table


@dataclass(frozen=True)
class _LayerTime:
    """The time of one layer: forms of its kept slices, the block that removes it (or -1), and its share of the rest."""

    table: LayerTable
    first: int
    second: int
    block: int
    axis: int
    scale: float
    ns_per_slice: float
    overhead_ns: float

    def __call__(self, first: IntArray, second: IntArray) -> IntArray:
        """Return the time ``(n,)`` in ns for kept slices along the two axes of the weight."""
        made = second if self.axis else first
        time = self.scale * self.table(first, second) + self.ns_per_slice * made + self.overhead_ns
        return np.rint(time).astype(np.int64)


@dataclass(frozen=True)
class LatencyCost:
    """Predicted latency in whole nanoseconds, a :class:`search_spaces.cost.Cost`; made by :meth:`LatencyTable.cost`.

    Every layer is summed in its turn, so a genome's latency does not depend on the others in its population.
    """

    forms: CountForms
    layers: tuple[_LayerTime, ...]
    unit: str = "ns"

    @functools.cached_property
    def _touched(self) -> list[list[int]]:
        """Per group, the layers whose time its genes change."""
        weights = self.forms.weights
        return [
            [
                index
                for index, layer in enumerate(self.layers)
                if weights[group, layer.first] or weights[group, layer.second] or layer.block == group
            ]
            for group in range(len(weights))
        ]

    def __call__(self, counts: IntArray) -> IntArray:
        """Return the latency ``(n,)`` of one call for kept ``counts`` ``(n, n_groups)``."""
        return self._sum(range(len(self.layers)), counts)

    def _sum(self, layers: range | list[int], counts: IntArray) -> IntArray:
        kept = np.rint(self.forms(counts)).astype(np.int64)
        total = np.zeros(len(counts), np.int64)
        for index in layers:
            layer = self.layers[index]
            time = layer(kept[:, layer.first], kept[:, layer.second])
            total += time if layer.block < 0 else time * counts[:, layer.block]
        return total

    def marginals(self, counts: IntArray, steps: IntArray) -> FloatArray:
        """Return by how much the latency rises, ``(n, n_groups)``, when each group alone gains ``steps`` genes."""
        gains = np.broadcast_to(steps, counts.shape)
        rise = np.zeros(counts.shape)
        for group, layers in enumerate(self._touched):
            rows = np.flatnonzero(gains[:, group])
            before = counts[rows]
            after = before.copy()
            after[:, group] += gains[rows, group]
            rise[rows, group] = self._sum(layers, after) - self._sum(layers, before)
        return rise

    def gene_prices(self, sizes: IntArray, least: IntArray, steps: IntArray) -> FloatArray:  # noqa: ARG002 - protocol
        """Return what one gene of each group costs between its whole and its least width, ``(n_groups,)``.

        A mean over that whole way, since single steps of a measured table may cost nothing.
        """
        fewer = np.repeat(sizes[None], len(sizes), axis=0)
        np.fill_diagonal(fewer, least)
        return np.asarray((self(sizes[None]) - self(fewer)) / np.maximum(sizes - least, 1))


def bytes_per_slice(call: LayerCall) -> float:
    """Return the bytes that a layer writes for one sample and one kept slice of its output."""
    return BYTES_PER_ACTIVATION * call.n_written / call.weight_shape[made_axis(call.record)]


def _conditions(content: Mapping[str, Any]) -> Conditions:
    conditions = Conditions(**content)
    for field in fields(Conditions):
        value = getattr(conditions, field.name)
        is_count = field.name.startswith("n_") or field.name == "batch_size"
        if is_count and not (isinstance(value, int) and value >= 1):
            raise ValueError(f"`{field.name}` must be at least 1, but got {value!r}")
        if not is_count and not isinstance(value, str):
            raise ValueError(f"`{field.name}` must be a text, but got {value!r}")
    if not _DEVICE.fullmatch(conditions.device) or conditions.dtype not in DTYPE_NAMES:
        raise ValueError(f"{conditions.dtype!r} on {conditions.device!r} is nothing that networks are measured in")
    return conditions


def _layer_table(content: Mapping[str, Any]) -> LayerTable:
    table = LayerTable(
        tuple(int(count) for count in content["first"]),
        tuple(int(count) for count in content["second"]),
        tuple(tuple(_not_negative(time) for time in row) for row in content["times_ns"]),
    )
    for grid in (table.first, table.second):
        if not grid or grid[0] < 1 or list(grid) != sorted(set(grid)):
            raise ValueError(f"a grid must grow from at least 1, but got {grid}")
    if np.shape(table.times_ns) != (len(table.first), len(table.second)):
        raise ValueError(f"times of shape {np.shape(table.times_ns)} do not fit the grid")
    return table


def _not_negative(value: Any) -> float:
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError(f"a time must be finite and not negative, but got {value!r}")
    return number
