from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fitness.compensation import shortcut_partners
from fitness.folding import FoldedLayer, keep_mask
from fitness.layer_error import masked_error, optimal_update
from fitness.planar import planar
from fitness.program import Program
from fitness.static_compensation import StaticCompensation
from fitness.statistics import DenseStatistics, StatisticsOptions, collect_statistics
from fitness.two_step import TwoStep, TwoStepEvaluator
from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.genome import BoolArray
from search_spaces.surgery import named_tensors
from tests.fitness.networks import NETWORKS, images, prepared, program_of
from tests.search_spaces.patterns import Chain, conv, conv_bn

ALL = StatisticsOptions(n_positions=1000, batch_size=7)
TINY = 1e-9


def some_genomes(program: Program, n: int = 4) -> BoolArray:
    rng = np.random.default_rng(0)
    return program.space.repair(rng.random((n, program.space.n_genes)) < 0.6, rng=rng)


def layer_inputs(program: Program, inputs: Tensor) -> dict[str, Tensor]:
    """Return what every layer of the dense network reads."""
    found: dict[str, Tensor] = {}
    names = {step.layer.name: step.operation.args[0].name for step in program.steps if step.layer}

    def keep(layer: FoldedLayer, values: Any) -> None:
        found[layer.name] = values[names[layer.name]].clone()

    program.run(program.slice(program.space.all_ones()[0]), [inputs], on_layer=keep)
    return found


def run_layer(program: Program, name: str, value: Tensor, weight: Tensor) -> Tensor:
    """Return ``(positions, channels)`` outputs of one layer without bias, in float64, by the operator itself."""
    operation = next(step.operation for step in program.steps if step.layer and step.layer.name == name)
    if operation.op == "linear":
        return nn.functional.linear(value.double(), weight).reshape(-1, len(weight))
    out = operation.target(value.double(), weight, None, *operation.args[3:])
    return out.movedim(1, -1).reshape(-1, out.shape[1])


def power(outputs: Tensor, has_bias: bool) -> float:
    if has_bias:
        outputs = outputs - outputs.mean(0)
    return float(outputs.square().sum() / len(outputs))


def masked_weight(layer: FoldedLayer, genome: BoolArray) -> Tensor:
    """Return the float64 weight with dropped input slices zeroed."""
    assert layer.in_genes is not None
    axis = 0 if layer.record.is_transposed else 1
    gone = np.flatnonzero(~keep_mask(layer.in_genes, genome))
    return layer.weight.double().index_fill(axis, torch.from_numpy(gone), 0.0)


@pytest.mark.parametrize("name", NETWORKS)
def test_e1_is_the_squared_error_of_the_masked_layers(name: str) -> None:
    _, program, inputs = program_of(name)
    statistics = collect_statistics(program, inputs, ALL)
    assert not statistics.unmeasured
    two_step = TwoStep(program, statistics)
    values = layer_inputs(program, inputs)
    genomes = some_genomes(program)
    for genome, error in zip(genomes, two_step.e1(genomes), strict=True):
        expected = 0.0
        for consumer in statistics.consumers:
            layer = program.layers[consumer.layer]
            dense = run_layer(program, layer.name, values[layer.name], layer.weight.double())
            change = dense - run_layer(program, layer.name, values[layer.name], masked_weight(layer, genome))
            if layer.name not in shortcut_partners(program):
                assert consumer.energy == pytest.approx(power(dense, layer.has_bias), rel=1e-4)
            expected += power(change, layer.has_bias) / consumer.energy
        assert error == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_updates_are_least_squares_and_e2_is_their_residual(name: str) -> None:
    _, program, inputs = program_of(name)
    statistics = collect_statistics(program, inputs, ALL)
    two_step = TwoStep(program, statistics, damping=TINY)
    compensate = StaticCompensation(program, statistics, damping=TINY)
    values = layer_inputs(program, inputs)
    for genome in some_genomes(program, 2):
        tensors, expected = compensate(genome), 0.0
        for consumer in statistics.consumers:
            layer = program.layers[consumer.layer]
            view = planar(layer)
            assert view is not None
            dense = run_layer(program, layer.name, values[layer.name], layer.weight.double())
            if layer.is_shared or layer.record.is_transposed:
                change = dense - run_layer(program, layer.name, values[layer.name], masked_weight(layer, genome))
                expected += power(change, layer.has_bias) / consumer.energy
                continue
            patches = view.regressors(values[layer.name], 1000, torch.Generator()).double()
            keep = keep_mask(consumer.column_genes, genome)
            keep_out = keep_mask(layer.out_genes, genome).reshape(view.groups, -1)
            found_rows = tensors.weights[layer.name].reshape(int(keep_out.sum()), -1, *view.layer.weight.shape[2:])
            found = found_rows.movedim(1, -1).reshape(view.groups, -1, int(keep.sum())).double()
            residual, biases = 0.0, []
            for index in range(view.groups):
                X, W = patches[index], view.rows[index].double()
                kept = X[:, torch.from_numpy(keep)]
                if layer.has_bias:
                    kept = torch.cat([kept, torch.ones(len(X), 1)], 1)
                # the change of the weights of least norm, as the ridge finds it where the solution is not unique
                start = torch.zeros(kept.shape[1], len(W), dtype=torch.float64)
                start[: int(keep.sum())] = W[:, torch.from_numpy(keep)].T
                solution = start + torch.linalg.lstsq(kept, X @ W.T - kept @ start, driver="gelsd").solution
                left = X @ W.T - kept @ solution
                residual += float(left.square().sum() / len(left))
                rows = torch.from_numpy(keep_out[index])
                explained = kept[:, : int(keep.sum())] @ found[index].T
                if layer.has_bias:
                    biases.append((X @ W.T - kept[:, :-1] @ solution[:-1]).mean(0)[rows])
                    explained = explained - explained.mean(0)
                    best = kept[:, :-1] @ solution[:-1][:, rows]
                    best = best - best.mean(0)
                else:
                    best = kept @ solution[:, rows]
                assert torch.allclose(explained, best, atol=2e-3 * float(best.std() + 1e-3) + 1e-4)
            expected += residual / consumer.energy
            if layer.has_bias and not keep.all():
                own = layer.bias[torch.from_numpy(keep_out.reshape(-1))]
                assert torch.allclose(tensors.biases[layer.name], own + torch.cat(biases).float(), atol=5e-3)
        assert two_step.e2(genome[None])[0] == pytest.approx(expected, rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("damping", [1e-6, 1e-2, 10.0])
def test_update_never_makes_it_worse(name: str, damping: float) -> None:
    _, program, inputs = program_of(name)
    two_step = TwoStep(program, collect_statistics(program, inputs, ALL), damping=damping)
    genomes = np.concatenate([some_genomes(program), program.space.all_ones()])
    e1, e2 = two_step.e1(genomes), two_step.e2(genomes)
    assert (e2 <= e1 * (1 + 1e-6)).all()
    assert e1[-1] == e2[-1] == 0
    assert (e1[:-1] > 0).any()


def test_optimal_update_solves_the_layer_problem() -> None:
    rng = torch.Generator().manual_seed(0)
    X = torch.randn(200, 9, generator=rng, dtype=torch.float64) @ torch.randn(9, 9, generator=rng, dtype=torch.float64)
    W = torch.randn(4, 9, generator=rng, dtype=torch.float64)
    H = X.T @ X / len(X)
    kept, dropped = torch.tensor([0, 2, 3, 5, 8]), torch.tensor([1, 4, 6, 7])
    found = optimal_update(H, W, kept, dropped, 1e-13)
    assert found is not None
    solution = torch.linalg.lstsq(X[:, kept], X @ W.T).solution.T
    assert torch.allclose(W[:, kept] + found[0], solution)
    residual = X @ W.T - X[:, kept] @ solution.T
    assert found[1] == pytest.approx(float(residual.square().sum() / 2 / len(X)))
    inverse = torch.linalg.inv(H)[dropped][:, dropped]
    assert found[1] == pytest.approx(float((W[:, dropped] @ torch.linalg.inv(inverse) * W[:, dropped]).sum() / 2))
    assert masked_error(H, W, dropped) == pytest.approx(
        float((X[:, dropped] @ W[:, dropped].T).square().sum() / 2 / len(X))
    )


def test_damped_update_reports_the_error_that_it_leaves() -> None:
    rng = torch.Generator().manual_seed(1)
    X, W = torch.randn(50, 6, generator=rng, dtype=torch.float64), torch.randn(3, 6, generator=rng, dtype=torch.float64)
    kept, dropped = torch.arange(4), torch.arange(4, 6)
    found = optimal_update(X.T @ X / len(X), W, kept, dropped, 0.5)
    assert found is not None
    left = X @ W.T - X[:, kept] @ (W[:, kept] + found[0]).T
    assert found[1] == pytest.approx(float(left.square().sum() / 2 / len(X)))


def test_indefinite_system_is_refused() -> None:
    H = -torch.eye(3)
    assert optimal_update(H, torch.ones(2, 3), torch.tensor([0, 1]), torch.tensor([2]), 1e-3) is None


@pytest.mark.parametrize("name", ["convolution", "concat", "coupled, several readers", "grouped"])
def test_marginals_are_those_of_brute_force(name: str) -> None:
    _, program, inputs = program_of(name)
    two_step = TwoStep(program, collect_statistics(program, inputs, ALL))
    genome = some_genomes(program, 1)[0]
    now = two_step.e1(genome[None])[0]
    flips = np.repeat(genome[None], len(genome), axis=0) ^ np.eye(len(genome), dtype=np.bool_)
    assert two_step.flip_marginals(genome) == pytest.approx(two_step.e1(flips) - now, abs=1e-10)
    dropped = int(np.flatnonzero(~genome)[0])
    swaps = flips.copy()
    swaps[:, dropped] = True
    expected = np.where(genome, two_step.e1(swaps) - now, np.inf)
    assert two_step.swap_marginals(genome, dropped) == pytest.approx(expected, abs=1e-10)
    with pytest.raises(OptionError, match="is kept"):
        two_step.swap_marginals(genome, int(np.flatnonzero(genome)[0]))


@pytest.mark.parametrize("name", NETWORKS)
def test_elimination_is_greedy(name: str) -> None:
    _, program, inputs = program_of(name)
    damping = 1e-5
    statistics = collect_statistics(program, inputs, ALL)
    two_step = TwoStep(program, statistics, damping=damping)
    for group in program.space.groups:
        genome = program.space.all_ones()[0]
        for gene, error in zip(two_step.order(group), two_step.curves[group.name], strict=True):
            left = np.flatnonzero(genome[group.start : group.stop]) + group.start
            trials = np.repeat(genome[None], len(left), axis=0)
            trials[np.arange(len(left)), left] = False
            errors = two_step.e2(trials)
            place = int(np.flatnonzero(left == gene)[0])
            assert errors[place] <= errors.min() * (1 + 1e-2) + 1e-3
            assert error == pytest.approx(errors[place], rel=2e-2, abs=2e-3)
            genome[gene] = False


def test_scores_sort_into_the_elimination_order() -> None:
    _, program, inputs = program_of("coupled, several readers")
    two_step = TwoStep(program, collect_statistics(program, inputs, ALL))
    scores = two_step.scores()
    for group in program.space.groups:
        order = two_step.order(group)
        assert sorted(order) == list(range(group.start, group.stop))
        assert (np.diff(scores[order]) >= 0).all()
        assert (scores[order] > 0).all()


def test_many_genes_go_in_sweeps_with_exact_errors() -> None:
    torch.manual_seed(0)
    _, program = prepared(Chain(conv_bn(3, 150), conv(150, 4), width=4))
    statistics = collect_statistics(program, images(64), StatisticsOptions(n_positions=32))
    two_step = TwoStep(program, statistics, damping=1e-2)
    group = program.space.groups[0]
    elimination = two_step.elimination(group)
    assert sorted(elimination.order) == list(range(150))
    consumer = next(c for c in statistics.consumers if len(c.genes) == 150)
    H = consumer.covariance[0].double()
    H = H + 1e-2 * H.diagonal().mean() * torch.eye(len(H))
    view = planar(program.layers[consumer.layer])
    assert view is not None
    W = view.rows[0].double()
    for n in (1, 30, 100, 149):
        gone = torch.from_numpy(np.flatnonzero(np.isin(consumer.column_genes, elimination.order[:n])))
        part = W[:, gone]
        error = (part @ torch.linalg.solve(torch.linalg.inv(H)[gone][:, gone], part.T)).trace() / consumer.energy
        assert elimination.error[n - 1] == pytest.approx(float(error), rel=1e-6)


def test_population_and_single_genome_agree_to_the_last_bit() -> None:
    _, program, inputs = program_of("concat")
    two_step = TwoStep(program, collect_statistics(program, inputs, ALL))
    genomes = some_genomes(program, 33)
    assert [float(two_step.e1(genome[None])[0]) for genome in genomes] == two_step.e1(genomes).tolist()


@pytest.mark.parametrize("name", ["convolution", "grouped", "flatten to linear", "no bias"])
def test_without_memory_the_gram_is_estimated_and_the_update_is_channel_wise(name: str) -> None:
    _, program, inputs = program_of(name)
    exact = TwoStep(program, collect_statistics(program, inputs, ALL))
    statistics = collect_statistics(program, inputs, replace(ALL, max_bytes=0, n_sketches=4000))
    assert not any(consumer.has_covariance for consumer in statistics.consumers)
    two_step = TwoStep(program, statistics)
    genomes = some_genomes(program)
    assert two_step.e1(genomes) == pytest.approx(exact.e1(genomes), rel=0.15)
    assert two_step.e2(genomes) == pytest.approx(two_step.e1(genomes))
    assert two_step.scores().min() >= 0
    tensors = StaticCompensation(program, statistics)(genomes[0])
    plain = program.slice(genomes[0])
    assert {n: t.shape for n, t in tensors.weights.items()} == {n: t.shape for n, t in plain.weights.items()}

    def network_error(candidate: Any) -> float:
        dense = program.run(program.slice(program.space.all_ones()[0]), [inputs])[program.outputs[0]]
        return float((program.run(candidate, [inputs])[program.outputs[0]] - dense).square().sum())

    assert network_error(tensors) < network_error(plain)


def test_channel_wise_update_is_exact_for_pointwise_layers() -> None:
    _, program, inputs = program_of("pointwise")
    genome = some_genomes(program, 1)[0]
    whole = StaticCompensation(program, collect_statistics(program, inputs, ALL))(genome)
    poor = StaticCompensation(program, collect_statistics(program, inputs, replace(ALL, max_bytes=0)))(genome)
    for name in whole.weights:
        assert torch.allclose(whole.weights[name], poor.weights[name], atol=1e-4)
        assert torch.allclose(whole.biases[name], poor.biases[name], atol=1e-4)


def duplicated(change: Callable[[nn.Module], None] | None = None) -> tuple[nn.Module, Program]:
    torch.manual_seed(0)
    model = Chain(conv_bn(3, 6), conv_bn(6, 5), conv(5, 4), width=4)
    first = model.layers[0]
    with torch.no_grad():
        first[0].weight[4] = 2 * first[0].weight[1]
        first[1].running_mean.zero_()
    if change is not None:
        change(model)
    return prepared(model)


def test_static_compensation_replaces_a_duplicate_exactly() -> None:
    _, program = duplicated()
    inputs = images(24)
    compensate = StaticCompensation(program, collect_statistics(program, inputs, ALL), damping=1e-7)
    genome = program.space.all_ones()[0]
    dense = program.run(program.slice(genome), [inputs])[program.outputs[0]]
    genome[4] = False
    small = program.run(compensate(genome), [inputs])[program.outputs[0]]
    assert torch.allclose(small, dense, atol=1e-4)
    assert not torch.allclose(program.run(program.slice(genome), [inputs])[program.outputs[0]], dense, atol=1e-2)


def test_all_ones_genome_is_left_alone() -> None:
    _, program, inputs = program_of("coupled, several readers")
    ones = program.space.all_ones()[0]
    tensors = StaticCompensation(program, collect_statistics(program, inputs, ALL))(ones)
    for name, layer in program.layers.items():
        assert torch.equal(tensors.weights[name], layer.weight)
        assert torch.equal(tensors.biases[name], layer.bias)


def test_constant_zero_activations_cost_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def silence(model: nn.Module) -> None:
        with torch.no_grad():
            model.layers[1][1].weight.zero_()  # type: ignore[index,union-attr,operator]
            model.layers[1][1].bias.fill_(-1.0)  # type: ignore[index,union-attr,operator]

    _, program = duplicated(silence)
    statistics = collect_statistics(program, images(24), ALL)
    assert len(statistics.silent) >= 1
    assert "constant output" in caplog.text
    two_step = TwoStep(program, statistics)
    genomes = some_genomes(program)
    for figures in (two_step.e1(genomes), two_step.e2(genomes), two_step.scores()):
        assert np.isfinite(figures).all()
    compensated = StaticCompensation(program, statistics)(genomes[0])
    assert all(torch.isfinite(weight).all() for weight in compensated.weights.values())


@pytest.mark.parametrize("max_bytes", [0, 1 << 30])
def test_images_that_are_not_finite_are_left_out(max_bytes: int, caplog: pytest.LogCaptureFixture) -> None:
    _, program, inputs = program_of("convolution")
    options = replace(ALL, max_bytes=max_bytes)
    clean = TwoStep(program, collect_statistics(program, inputs, options))
    bad = torch.cat([inputs, torch.full_like(inputs[:2], torch.nan)])
    statistics = collect_statistics(program, bad, options)
    assert statistics.n_rows_dropped > 0
    assert "not finite" in caplog.text
    genomes = some_genomes(program)
    assert TwoStep(program, statistics).e1(genomes) == pytest.approx(clean.e1(genomes), rel=1e-5)


def test_nothing_finite_at_all_is_no_crash() -> None:
    _, program, inputs = program_of("convolution")
    statistics: DenseStatistics = collect_statistics(program, torch.full_like(inputs, torch.nan), ALL)
    genomes = some_genomes(program)
    assert (TwoStep(program, statistics).e1(genomes) == 0).all()
    tensors = StaticCompensation(program, statistics)(genomes[0])
    assert all(torch.isfinite(weight).all() for weight in tensors.weights.values())


def test_volumes_and_signals_are_measured() -> None:
    from search_spaces import SearchSpace
    from search_spaces.verification import randomise
    from tests.search_spaces.patterns import PATTERNS

    for name, shape in (("three dimensions", (9, 3, 4, 6, 6)), ("one dimension", (9, 3, 16))):
        model = PATTERNS[name].build()
        randomise(model, seed=3)
        model.eval().requires_grad_(False)
        program = Program(SearchSpace.trace(model, torch.zeros(1, *shape[1:])), named_tensors(model))
        inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        statistics = collect_statistics(program, inputs, StatisticsOptions(n_positions=1000))
        values, genome = layer_inputs(program, inputs), some_genomes(program, 1)[0]
        expected = 0.0
        for consumer in statistics.consumers:
            layer = program.layers[consumer.layer]
            dense = run_layer(program, layer.name, values[layer.name], layer.weight.double())
            change = dense - run_layer(program, layer.name, values[layer.name], masked_weight(layer, genome))
            expected += power(change, layer.has_bias) / power(dense, layer.has_bias)
        assert TwoStep(program, statistics).e1(genome[None])[0] == pytest.approx(expected, rel=1e-4)
        small = program.run(StaticCompensation(program, statistics)(genome), [inputs])[program.outputs[0]]
        assert torch.isfinite(small).all()


def test_evaluator_follows_its_contract() -> None:
    _, program, inputs = program_of("convolution")
    two_step = TwoStep(program, collect_statistics(program, inputs, ALL))
    evaluator = TwoStepEvaluator(two_step)
    genomes = some_genomes(program)
    for rung in evaluator.rungs:
        together = evaluator.evaluate(genomes, rung)
        assert [e.rung for e in together] == [rung] * len(genomes)
        assert together == [evaluator.evaluate(genome[None], rung)[0] for genome in genomes]
        assert all(e.n_images == 0 and e.objective == e.metrics[rung] for e in together)
    with pytest.raises(UnknownNameError, match="valid: e1, e2"):
        evaluator.evaluate(genomes, "e3")


@pytest.mark.parametrize("keyword", ["n_positions", "batch_size", "n_sketches", "max_bytes"])
def test_options_are_checked(keyword: str) -> None:
    with pytest.raises(OptionError, match=keyword):
        StatisticsOptions(**{keyword: -1})
    _, program, inputs = program_of("convolution")
    statistics = collect_statistics(program, inputs, ALL)
    for make in (TwoStep, StaticCompensation):
        with pytest.raises(OptionError, match="damping > 0"):
            make(program, statistics, damping=0.0)


def test_genes_that_no_layer_was_measured_for_are_wanted_most() -> None:
    _, program, inputs = program_of("convolution")
    statistics = collect_statistics(program, inputs, ALL)
    first = program.space.groups[0]
    rest = tuple(consumer for consumer in statistics.consumers if first.start not in consumer.genes)
    scores = TwoStep(program, replace(statistics, consumers=rest)).scores()
    assert (scores[first.start : first.stop] == scores.max()).all()
