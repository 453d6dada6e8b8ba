"""Latency tables: predictions against formulas of the sliced weights, repair, files, and what is measured."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from search_spaces import SearchSpace, latency_measurement, prune_model
from search_spaces.errors import BudgetError, OptionError
from search_spaces.genome import BoolArray, FloatArray
from search_spaces.latency import Conditions, LatencyCost, LatencyTable, LayerTable
from search_spaces.latency_measurement import (
    MeasurementOptions,
    grid_of,
    measure_latency,
    measure_networks,
    median_times,
    spread_genomes,
)
from search_spaces.layer_calls import layer_calls, network_digest
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors
from tests.search_spaces.patterns import PATTERNS, build_pattern
from tests.search_spaces.spaces import random_genomes, traced

CONDITIONS = Conditions("net", "cpu", "a processor", "2.9", 1, 1, "float32", 3)
SCALE, NS_PER_BYTE, OVERHEAD = 2.0, 0.5, 6000.0
NAMES = ["chain", "residual", "grouped", "depthwise", "dense connections", "channel shuffle"]


def table_of(space: SearchSpace, *, noise: float = 0.0, seed: int = 0) -> LatencyTable:
    """Return a table whose layers take ``1000 + 40 * first * second`` ns, times random factors."""
    rng = np.random.default_rng(seed)
    calls = layer_calls(space.graph, space.layers)
    tables = []
    for call in calls:
        first, second = (grid_of(call.weight_shape[0], call.unit, 6), grid_of(call.weight_shape[1], 1, 6))
        times = 1000 + 40.0 * np.outer(first, second)
        times *= np.exp(noise * rng.normal(size=times.shape))
        tables.append(LayerTable(first, second, tuple(map(tuple, times.tolist()))))
    return LatencyTable(
        network_digest(calls), CONDITIONS, tuple(tables), tuple(range(len(calls))), SCALE, NS_PER_BYTE, OVERHEAD
    )


def expected_ns(model: torch.nn.Module, space: SearchSpace, genome: BoolArray) -> float:
    """Return the time that the formula gives for the weights of the sliced network."""
    tensors = named_tensors(prune_model(model, space, genome))
    calls = layer_calls(space.graph, space.layers)
    total = 0.0
    for call in calls:
        assert call.record.weight is not None
        if call.record.weight not in tensors:
            continue  # its block is gone
        first, second = tensors[call.record.weight].shape[:2]
        is_second = call.record.is_transposed and not call.record.is_depthwise
        written = call.n_written * (second if is_second else first) / call.weight_shape[1 if is_second else 0]
        total += SCALE * (1000 + 40.0 * first * second) + NS_PER_BYTE * 4 * written + OVERHEAD / len(calls)
    return total


def condition(name: str, value: object) -> dict[str, object]:
    """Return a change of a table that records ``value`` as one of its conditions."""
    return {"conditions": {**asdict(CONDITIONS), name: value}}


@functools.cache
def resnet_with_blocks() -> tuple[torch.nn.Module, SearchSpace]:
    model = build_model("resnet20", model_args={"width": 0.25}).eval()
    return model, SearchSpace.trace(model, torch.zeros(2, 3, 32, 32), block_genes=True, verify=False)


@pytest.mark.parametrize("name", PATTERNS)
def test_a_bilinear_table_is_predicted_exactly_from_the_sliced_weights(name: str) -> None:
    model, _, space = traced(name)
    genomes = np.concatenate([space.all_ones(), random_genomes(space, 4)])
    predicted = table_of(space).cost(space)(space.kept_counts(genomes))
    expected = [expected_ns(model, space, genome) for genome in genomes]
    # Every layer is rounded to whole nanoseconds.
    assert np.abs(predicted - expected).max() <= 0.5 * len(space.layers) + 1e-6


def test_removed_blocks_take_their_layers_and_their_share_along() -> None:
    model, space = resnet_with_blocks()
    genomes = space.sample(rng=np.random.default_rng(0), n=6)
    genomes[:3, -2] = False
    genomes = space.repair(genomes, rng=np.random.default_rng(1))
    predicted = table_of(space).cost(space)(space.kept_counts(genomes))
    expected = [expected_ns(model, space, genome) for genome in genomes]
    assert np.abs(predicted - expected).max() <= 0.5 * len(space.layers)


def test_what_is_fitted_knows_that_blocks_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, space = resnet_with_blocks()
    truth = table_of(space)
    tables = {
        call.shape_key: table for call, table in zip(layer_calls(space.graph, space.layers), truth.tables, strict=True)
    }
    seen: list[BoolArray] = []

    def measured(_model: object, _space: object, genomes: BoolArray, _options: object) -> FloatArray:
        seen.append(genomes)
        return truth.cost(space)(space.kept_counts(genomes)).astype(float)

    monkeypatch.setattr(latency_measurement, "_measure_layer", lambda call, *_: tables[call.shape_key])
    monkeypatch.setattr(latency_measurement, "measure_networks", measured)
    table = measure_latency(model, space, MeasurementOptions(), name="net", rng=np.random.default_rng(0)).table
    assert not seen[0][:, -len(space.blocks) :].all()
    found = (table.scale, table.ns_per_byte, table.overhead_ns)
    assert found == pytest.approx((SCALE, NS_PER_BYTE, OVERHEAD), rel=1e-2)


def test_between_grid_points_lies_the_bilinear_mean() -> None:
    table = LayerTable((2, 6), (1, 3), ((10.0, 30.0), (50.0, 110.0)))
    first, second = np.array([2, 6, 4, 4, 0]), np.array([1, 3, 2, 1, 1])
    assert table(first, second).tolist() == [10.0, 110.0, 50.0, 30.0, 10.0]


def test_a_noisy_table_is_used_between_its_monotone_bounds() -> None:
    times = np.exp(np.random.default_rng(0).normal(size=(7, 5)))
    table = LayerTable(tuple(range(1, 8)), tuple(range(1, 6)), tuple(map(tuple, times.tolist())))
    used = table.monotone_ns
    assert (np.diff(used, axis=0) >= 0).all()
    assert (np.diff(used, axis=1) >= 0).all()
    for row, column in np.ndindex(7, 5):
        most, least = times[: row + 1, : column + 1].max(), times[row:, column:].min()
        assert used[row, column] == pytest.approx((most + least) / 2)


def test_a_monotone_table_is_used_as_it_is() -> None:
    times = np.outer([1.0, 2.0, 5.0], [3.0, 4.0])
    table = LayerTable((1, 2, 3), (1, 2), tuple(map(tuple, times.tolist())))
    assert np.array_equal(table.monotone_ns, times)


@pytest.mark.parametrize("name", NAMES)
def test_marginals_are_differences_and_prices_means(name: str) -> None:
    _, _, space = traced(name)
    cost = table_of(space, noise=0.5).cost(space)
    counts = space.lattice.floor(space.kept_counts(random_genomes(space, 5)))
    gains = space.lattice.above(counts) - counts
    rise = cost.marginals(counts, gains)
    lattice = space.lattice
    prices = cost.gene_prices(lattice.sizes, lattice.min_keep, lattice.step)
    for column in range(len(space.groups)):
        larger = counts.copy()
        larger[:, column] += gains[:, column]
        assert rise[:, column].tolist() == (cost(larger) - cost(counts)).tolist()
        assert (rise[:, column] >= 0).all()
        fewer = lattice.sizes.copy()
        fewer[column] = lattice.min_keep[column]
        fall = float(cost(lattice.sizes[None])[0] - cost(fewer[None])[0])
        assert prices[column] == pytest.approx(fall / max(lattice.sizes[column] - lattice.min_keep[column], 1))


def assert_tight(space: SearchSpace, genomes: BoolArray, cost: LatencyCost, limit: int) -> None:
    """The limit holds, and no single further step of any group fits it."""
    counts = space.kept_counts(genomes)
    assert (cost(counts) <= limit).all()
    above = space.lattice.above(counts)
    for column in range(len(space.groups)):
        larger = counts.copy()
        larger[:, column] = above[:, column]
        grows = larger[:, column] > counts[:, column]
        assert (cost(space.lattice.canonical(larger))[grows] > limit).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rules", [{}, {"round_to": 2}, {"min_channels": 2}])
@pytest.mark.parametrize("with_scores", [False, True])
def test_repair_holds_a_latency_from_below(name: str, rules: dict[str, int], with_scores: bool) -> None:
    model, inputs = build_pattern(name)
    space = SearchSpace.trace(model, inputs, verify=False, **rules)  # type: ignore[arg-type]
    cost = table_of(space, noise=0.3).cost(space)
    timed = space.with_cost("latency", cost)
    least, most = timed.cost_range("latency")
    rng = np.random.default_rng(0)
    genomes = rng.random((12, space.n_genes)) < rng.random((12, 1))
    scores = rng.random(space.n_genes) if with_scores else None
    for share in (0.0, 0.3, 0.7, 1.0):
        budget = (least + share * (most - least)) / most + 1e-9
        budgets = {"latency": min(budget, 1.0)}
        fixed = timed.repair(genomes, budgets=budgets, rng=np.random.default_rng(1), scores=scores)
        assert_tight(space, fixed, cost, int(budgets["latency"] * most))
        again = timed.repair(fixed, budgets=budgets, rng=np.random.default_rng(2), scores=scores)
        assert np.array_equal(again, fixed)


def test_repair_holds_latency_and_macs_together_where_blocks_may_go() -> None:
    _, space = resnet_with_blocks()
    cost = table_of(space, noise=0.3).cost(space)
    timed = space.with_cost("latency", cost)
    genomes = space.sample(rng=np.random.default_rng(0), n=10)
    budgets = {"latency": 0.6, "macs": 0.5}
    fixed = timed.repair(genomes, budgets=budgets, rng=np.random.default_rng(1))
    assert (timed.cost("latency", fixed) <= 0.6 * timed.cost_range("latency")[1]).all()
    assert (space.macs(fixed) <= 0.5 * space.macs_dense).all()
    assert np.array_equal(timed.repair(fixed, budgets=budgets, rng=np.random.default_rng(2)), fixed)
    only = timed.repair(genomes, budgets={"latency": 0.6}, rng=np.random.default_rng(1))
    assert_tight(space, only, cost, int(0.6 * timed.cost_range("latency")[1]))


def test_an_unreachable_latency_names_the_range() -> None:
    _, _, space = traced("chain")
    timed = space.with_cost("latency", table_of(space).cost(space))
    least, most = timed.cost_range("latency")
    with pytest.raises(
        BudgetError, match=rf"the ns budget must lie within the reachable range \[{least:,}, {most:,}\]"
    ):
        timed.sample(rng=np.random.default_rng(0), n=1, budgets={"latency": 0.9 * least / most})


def test_a_genome_has_the_same_latency_in_any_population() -> None:
    _, space = resnet_with_blocks()
    cost = table_of(space, noise=0.3).cost(space)
    counts = space.kept_counts(space.sample(rng=np.random.default_rng(0), n=50))
    assert cost(counts).tolist() == [int(cost(row[None])[0]) for row in counts]


def test_a_table_survives_its_file() -> None:
    _, _, space = traced("chain")
    table = table_of(space, noise=0.3)
    again = LatencyTable.from_json(json.loads(json.dumps(table.to_json())), "a file")
    assert again == table
    assert again.digest == table.digest
    assert table_of(space, noise=0.3, seed=1).digest != table.digest


def test_a_table_of_another_network_is_refused() -> None:
    table = table_of(traced("chain")[2])
    for other in ("residual", "grouped"):
        with pytest.raises(OptionError, match=r"measured for the network that is searched.*`evoprune latency`"):
            table.cost(traced(other)[2])


def test_the_rules_of_a_space_do_not_matter_to_its_table() -> None:
    model, inputs, space = traced("chain")
    rounded = SearchSpace.trace(model, inputs, round_to=2, protect=[space.groups[0].name])
    cost = table_of(space).cost(rounded)
    assert cost(rounded.lattice.sizes[None]) == table_of(space).cost(space)(space.lattice.sizes[None])


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"schema_version": 9}, "version 1, but its `schema_version` is 9"),
        ({"scale": -1.0}, "must be finite and not negative, but got -1.0"),
        ({"overhead_ns": "inf"}, "must be finite and not negative"),
        ({"table_of_layer": [0, 1, 2, 9]}, "names a table that is not there"),
        ({"conditions": {}}, "damaged: TypeError"),
        (condition("device", "abacus"), "nothing that networks are measured in"),
        (condition("dtype", "int8"), "nothing that networks are measured in"),
        (condition("batch_size", 0), "`batch_size` must be at least 1, but got 0"),
        (condition("n_threads", "two"), "`n_threads` must be at least 1, but got 'two'"),
        (condition("device_name", 7), "`device_name` must be a text, but got 7"),
        ({"tables": [{"first": [2, 1], "second": [1], "times_ns": [[1.0], [2.0]]}]}, "a grid must grow"),
        ({"tables": [{"first": [1, 2], "second": [1], "times_ns": [[1.0]]}]}, "do not fit the grid"),
        ({"tables": [{"first": [1, 2]}]}, "damaged: KeyError"),
    ],
)
def test_a_damaged_table_is_refused(change: dict[str, object], rule: str) -> None:
    content = table_of(traced("chain")[2]).to_json() | change
    with pytest.raises(OptionError, match=rule):
        LatencyTable.from_json(content, "a file")


@pytest.mark.parametrize("name", PATTERNS)
def test_layers_run_alone_at_any_width_of_the_grid(name: str) -> None:
    _, _, space = traced(name)
    for call in layer_calls(space.graph, space.layers):
        dense_first, dense_second = call.weight_shape[:2]
        widths = [(dense_first, dense_second), (grid_of(dense_first, call.unit, 3)[0], dense_second)]
        if not call.record.is_depthwise:
            widths.append((grid_of(dense_first, call.unit, 3)[0], 1))
        for first, second in widths:
            output = call.at(first, second, 3, torch.float32, torch.device("cpu"))()
            is_second = call.record.is_transposed and not call.record.is_depthwise
            share = second / dense_second if is_second else first / dense_first
            n_samples = max(call.input_shape[0] * 3 // call.n_samples, 1) / call.input_shape[0] * call.n_samples
            assert output.numel() == pytest.approx(n_samples * call.n_written * share)


@pytest.mark.parametrize(
    ("n", "unit", "most", "grid"),
    [
        (3, 1, 10, (1, 3)),
        (1, 1, 10, (1,)),
        (16, 1, 10, (1, 4, 8, 16)),
        (64, 1, 4, (1, 16, 32, 64)),
        (32, 4, 10, (4, 16, 32)),
    ],
)
def test_grids(n: int, unit: int, most: int, grid: tuple[int, ...]) -> None:
    assert grid_of(n, unit, most) == grid


def test_a_measured_table_fits_the_network_it_was_measured_on() -> None:
    model, _, space = traced("residual")
    options = MeasurementOptions(batch_size=2, n_rounds=1, max_points=2, n_networks=3)
    n_threads, seen = torch.get_num_threads(), []
    measurement = measure_latency(
        model,
        space,
        options,
        name="residual",
        rng=np.random.default_rng(0),
        n_checks=2,
        on_progress=lambda done, total: seen.append((done, total)),
    )
    table = measurement.table
    assert torch.get_num_threads() == n_threads
    assert measurement.checked.shape == (2, space.n_genes)
    assert (measurement.checked_ns > 0).all()
    assert seen == [(i + 1, len(table.tables)) for i in range(len(table.tables))]
    assert (table.conditions.batch_size, table.conditions.n_threads, table.conditions.model) == (2, 1, "residual")
    assert all((np.array(part.times_ns) > 0).all() for part in table.tables)
    dense, least = table.cost(space)(np.stack([space.lattice.sizes, space.lattice.min_keep]))
    assert dense >= least >= 0
    assert dense > 0


def test_networks_are_measured_one_by_one() -> None:
    model, _, space = traced("chain")
    genomes = spread_genomes(space, 3, rng=np.random.default_rng(0))
    assert (np.diff(space.macs(genomes)) > 0).all()
    times = measure_networks(model, space, genomes, MeasurementOptions(n_rounds=1))
    assert times.shape == (3,)
    assert (times > 0).all()


def test_every_call_is_made_in_every_round() -> None:
    made: list[str] = []
    calls = [functools.partial(made.append, "a"), functools.partial(made.append, "b")]
    times = median_times(calls, 4, torch.device("cpu"))
    assert times.shape == (2,)
    assert made.index("b") < len(made) - 1 - made[::-1].index("a")  # they take turns
    assert min(made.count("a"), made.count("b")) >= 3 + 1 + 4 * 3


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 0}, {"n_threads": 0}, {"dtype": "int8"}, {"n_rounds": 0}, {"max_points": 1}, {"n_networks": 2}],
)
def test_options_out_of_range(change: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=f"`{next(iter(change))}.*must hold for a measurement of latency"):
        MeasurementOptions(**change)  # type: ignore[arg-type]
