"""Two layers with a ReLU between them are solved for what the second one makes, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fitness.compensation import CompensationOptions, SequentialCompensation, shortcut_partners
from fitness.folding import keep_mask
from fitness.layer_pairs import PairProblem, layer_pairs, pair_problem, refine
from fitness.network import NETWORK_RUNG, NetworkEvaluator, StageEvaluator
from fitness.options import FitnessOptions
from fitness.program import Program, SlicedTensors
from fitness.regression import LayerTarget, to_rows
from fitness.writeback import compensated_model
from search_spaces import SearchSpace
from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray
from search_spaces.models import build_model
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise, relative_difference
from tests.fitness.networks import images, prepared
from tests.search_spaces.patterns import Chain, Residual, conv, conv_bn

PAIRED = CompensationOptions(n_positions=64, damping=1e-4, every_layer=True, n_pair_steps=1)


def _random_problem(*, is_rectified: bool, n_channels: int = 2, seed: int = 0) -> tuple[PairProblem, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    n, taps, k, n_out = 40, 3, 2, 4
    patches = torch.cat([draw(n * taps, k), torch.ones(n * taps, 1)], dim=1)
    patches[5] = 0.0  # beyond the map
    problem = PairProblem(patches, draw(n_out, taps * n_channels), draw(n_out), draw(n, n_out), is_rectified)
    return problem, draw(n_channels, k + 1)


@pytest.mark.parametrize("is_rectified", [False, True])
def test_a_step_solves_the_linearised_problem(is_rectified: bool) -> None:
    problem, weights = _random_problem(is_rectified=is_rectified)
    residual = problem.residual(weights)

    def counted(flat: Tensor) -> Tensor:
        """Return what the sum makes of open places as they are, where an error counts."""
        before = problem.patches @ weights.T
        moved = ((before > 0) * (problem.patches @ flat.reshape(weights.shape).T)).reshape(len(problem.rows), -1)
        reached = before.clamp(min=0).reshape(len(problem.rows), -1) @ problem.head.T + problem.offset
        is_free = (problem.rows < 0) & (reached <= 0) & is_rectified
        return (moved @ problem.head.T).masked_fill(is_free, 0.0).reshape(-1)

    jacobian = torch.stack([counted(unit) for unit in torch.eye(weights.numel())], dim=1)
    expected = torch.linalg.lstsq(jacobian, residual.reshape(-1, 1)).solution.reshape(weights.shape)
    torch.testing.assert_close(problem.step(weights), expected, rtol=1e-2, atol=1e-3)


def test_where_the_dense_sum_is_negative_any_negative_value_will_do() -> None:
    problem, weights = _random_problem(is_rectified=True)
    plain = replace(problem, is_rectified=False).residual(weights)
    reached = problem.rows - plain
    expected = torch.where(problem.rows < 0, -reached.clamp(min=0), plain)
    torch.testing.assert_close(problem.residual(weights), expected)
    assert problem.error(weights) < replace(problem, is_rectified=False).error(weights)


def test_refined_weights_are_better_and_perfect_ones_are_left_alone() -> None:
    for seed in range(5):
        problem, weights = _random_problem(is_rectified=bool(seed % 2), seed=seed)
        refined = refine(problem, weights)
        assert refined is not None
        assert problem.error(refined) < problem.error(weights)
        plain = replace(problem, is_rectified=False)
        perfect = replace(plain, rows=plain.rows - plain.residual(weights))
        assert refine(perfect, weights) is None
    broken = replace(problem, rows=problem.rows * torch.nan)
    assert refine(broken, weights) is None


_GEOMETRIES = {
    "plain": ({"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "padding": 1}),
    "strided": ({"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 3, "stride": (1, 2), "padding": 1}),
    "dilated": (
        {"kernel_size": 3, "padding": 2, "dilation": 2},
        {"kernel_size": (3, 1), "dilation": (2, 1), "padding": 1},
    ),
    "pointwise": ({"kernel_size": 1}, {"kernel_size": 3}),
    "no bias": ({"kernel_size": 3, "bias": False}, {"kernel_size": 1}),
}


@pytest.mark.parametrize("name", _GEOMETRIES)
@pytest.mark.parametrize("has_partner", [False, True])
def test_the_problem_is_that_of_the_two_layers(name: str, has_partner: bool) -> None:
    first, second = _GEOMETRIES[name]
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, **first), nn.ReLU(), nn.Conv2d(6, 7, **second))
    model = nn.Sequential(model, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(7, 4))
    randomise(model)
    _, program = prepared(model)
    pair = list(layer_pairs(program, program.layers).values())[-1]
    tensors = program.slice(program.space.all_ones()[0])
    weight, bias = tensors.weights[pair.first.name], tensors.biases[pair.first.name]
    inputs = torch.relu(torch.randn(40, 5, 8, 8, generator=torch.Generator().manual_seed(2)))

    def made(rows: Tensor) -> Tensor:
        weight_now = rows[:, :-1].reshape(6, *pair.first.kernel, 5).permute(0, 3, 1, 2)
        maps = functional.conv2d(
            inputs, weight_now, rows[:, -1], pair.first.stride, pair.first.padding, pair.first.dilation
        )
        solved = tensors.weights[pair.second.name], tensors.biases[pair.second.name]
        geometry = pair.second.stride, pair.second.padding, pair.second.dilation
        return functional.conv2d(torch.relu(maps), *solved, *geometry)

    rows = torch.cat([to_rows(weight), bias[:, None]], dim=1)
    maps = torch.relu(
        functional.conv2d(inputs, weight, bias, pair.first.stride, pair.first.padding, pair.first.dilation)
    )
    shape = made(rows).shape
    partner = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    aims = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    n_places = shape[2] * shape[3]
    problem = pair_problem(
        pair,
        inputs,
        {pair.between: maps, "shortcut": partner},
        (tensors.weights[pair.second.name], tensors.biases[pair.second.name]),
        LayerTarget(
            rows=aims.movedim(1, -1).reshape(-1, 7),
            positions=torch.arange(n_places).expand(40, n_places),
            output_width=shape[3],
            partner="shortcut" if has_partner else None,
            is_rectified=False,
        ),
        max_multiplications=1e12,
    )
    assert problem is not None
    for scale in (1.0, -0.7):
        expected = aims - made(scale * rows) - (partner if has_partner else 0)
        found = problem.residual(scale * rows).reshape(40, *shape[2:], 7).movedim(-1, 1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_few_samples_or_little_time_leave_the_first_layer_alone() -> None:
    program, inputs = _chain()
    genome = _genome(program)
    for options in (replace(PAIRED, max_multiplications=100.0), replace(PAIRED, n_positions=1)):
        few = inputs[:2]
        paired = SequentialCompensation(program, few, options)(genome)
        plain = SequentialCompensation(program, few, replace(options, n_pair_steps=0))(genome)
        _assert_equal(paired, plain)


def _chain() -> tuple[Program, Tensor]:
    model = Chain(conv_bn(3, 8), conv_bn(8, 10), conv_bn(10, 8), conv(8, 6), width=6)
    randomise(model, seed=1)
    return prepared(model)[1], images(96)


def _genome(program: Program) -> BoolArray:
    rng = np.random.default_rng(0)
    return program.space.repair(rng.random((1, program.space.n_genes)) < 0.6, rng=rng)[0]


def _assert_equal(first: SlicedTensors, second: SlicedTensors) -> None:
    for name in first.weights:
        assert torch.equal(first.weights[name], second.weights[name])
        assert torch.equal(first.biases[name], second.biases[name])


def _network(kind: str) -> tuple[nn.Module, Program, Tensor]:
    chain = Chain(conv_bn(3, 8), conv_bn(8, 10), conv_bn(10, 8), width=8)  # one pair: images cannot lose channels
    model: nn.Module = Residual() if kind == "residual" else chain
    randomise(model, seed=1)
    return (*prepared(model), images(96))


@pytest.mark.parametrize("kind", ["chain", "residual"])
def test_what_the_second_layer_makes_comes_nearer_and_is_written_back(kind: str) -> None:
    model, program, inputs = _network(kind)
    genome, unseen = _genome(program), images(16, seed=5)
    compensate = SequentialCompensation(program, inputs, PAIRED)
    second, pair = next(iter(layer_pairs(program, compensate.targets).items()))
    total = shortcut_partners(program).get(second, (second, ""))[0]
    reader = program.readers()[total][0]
    dense = program.slice(program.space.all_ones()[0])
    with torch.inference_mode():
        wanted = program.run(dense, [inputs], keep=[reader.name])[reader.name]
    errors, firsts = [], []
    for n_pair_steps in (0, 1, 2):
        options = replace(PAIRED, n_pair_steps=n_pair_steps, n_rectified_passes=2)
        tensors = SequentialCompensation(program, inputs, options)(genome)
        _assert_equal(tensors, SequentialCompensation(program, inputs, options)(genome))
        with torch.inference_mode():
            found = program.run(tensors, [inputs], keep=[reader.name])[reader.name]
            predicted = program.run(tensors, [unseen])[program.outputs[0]]
        errors.append(float((found - wanted[:, keep_mask(pair.second.out_genes, genome)]).square().mean()))
        firsts.append(tensors.weights[pair.first.name])
        assert relative_difference(predicted, compensated_model(model, program, tensors)(unseen)) < 1e-4
    assert reader.op == "relu"
    assert max(errors[1:]) < errors[0]
    assert not torch.equal(firsts[0], firsts[1])


def test_pairs_are_convolutions_that_nobody_else_reads() -> None:
    def pairs_of(name: str) -> list[tuple[str, str]]:
        model = build_model(name, model_args={"width": 0.25}).eval()
        space = SearchSpace.trace(model, torch.zeros(1, 3, 32, 32), verify=False)
        program = Program(space, named_tensors(model))
        solvable = [layer.name for layer in program.layer_order() if layer.is_solvable]
        found = layer_pairs(program, solvable).values()
        assert not layer_pairs(program, [])
        return [(str(p.first.record.module), str(p.second.record.module)) for p in found]

    residual = pairs_of("resnet20")
    assert len(residual) == 9
    assert all(first.replace("conv1", "conv2") == second for first, second in residual)
    plain = pairs_of("vgg16")
    assert len(plain) == 8  # 13 convolutions, 4 of them behind a pooling layer
    assert not pairs_of("mobilenet_v2")  # its convolutions are depthwise in turn


def test_genomes_share_nothing_that_depends_on_what_comes_behind() -> None:
    model = build_model("resnet20", model_args={"width": 0.25}).eval()
    randomise(model)
    space = SearchSpace.trace(model, torch.zeros(1, 3, 16, 16), verify=False)
    program = Program(space, named_tensors(model))
    generator = torch.Generator().manual_seed(0)
    pictures, labels = (
        torch.rand(40, 3, 16, 16, generator=generator),
        functional.one_hot(torch.arange(8) % 10, 10).float(),
    )
    options = FitnessOptions(batch_size=4, solve=PAIRED)

    def evaluator() -> NetworkEvaluator:
        return NetworkEvaluator(program, pictures[:8], labels, pictures[8:], options)

    start = space.groups[len(space.groups) // 2].start
    genomes = space.sample(rng=np.random.default_rng(1), n=3, macs_budget=0.6)
    genomes = np.where(np.arange(space.n_genes) < start, genomes[0], genomes)
    alone = [evaluator().evaluate(genome[None], NETWORK_RUNG)[0] for genome in genomes]
    one_by_one = evaluator()
    assert one_by_one.evaluate(genomes, NETWORK_RUNG) == alone
    staged = StageEvaluator(one_by_one, genomes[0], np.arange(start, space.n_genes))
    assert staged.prefix_bytes == 0
    assert staged.evaluate(genomes, NETWORK_RUNG) == alone
    plain: Any = replace(options, solve=replace(PAIRED, n_pair_steps=0))
    other = NetworkEvaluator(program, pictures[:8], labels, pictures[8:], plain).evaluate(genomes, NETWORK_RUNG)
    assert all(first.objective != second.objective for first, second in zip(alone, other, strict=True))


def test_a_negative_number_of_steps_is_refused() -> None:
    with pytest.raises(OptionError, match="n_pair_steps >= 0"):
        CompensationOptions(n_pair_steps=-1)
    with pytest.raises(OptionError, match="final_pair_steps >= 0"):
        FitnessOptions(final_pair_steps=-1)
