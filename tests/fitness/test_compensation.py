from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from fitness.compensation import CompensationOptions, SequentialCompensation, shortcut_partners
from fitness.folding import FoldedLayer, keep_mask
from fitness.program import Program
from fitness.regression import from_rows, gather_outputs, gather_patches, sample_positions, to_rows
from search_spaces.genome import BoolArray
from tests.fitness.networks import NETWORKS, images, prepared, program_of
from tests.search_spaces.patterns import Chain, Residual, conv, conv_bn

OPTIONS = CompensationOptions(n_positions=64, damping=1e-7)


def output(program: Program, tensors: Any, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = program.run(tensors, [inputs])[program.outputs[0]]
    return result


def some_genome(program: Program, seed: int = 0) -> BoolArray:
    rng = np.random.default_rng(seed)
    return program.space.repair(rng.random((1, program.space.n_genes)) < 0.6, rng=rng)[0]


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_network_is_left_alone(name: str) -> None:
    _, program, inputs = program_of(name)
    tensors = SequentialCompensation(program, inputs, OPTIONS)(program.space.all_ones()[0])
    for layer in program.layers.values():
        assert torch.equal(tensors.weights[layer.name], layer.weight)
        assert torch.equal(tensors.biases[layer.name], layer.bias)


@pytest.mark.parametrize("name", NETWORKS)
def test_candidate_runs_and_comes_nearer_to_the_dense_network(name: str) -> None:
    _, program, inputs = program_of(name)
    genome = some_genome(program)
    compensate = SequentialCompensation(program, inputs, OPTIONS)
    dense = output(program, program.slice(program.space.all_ones()[0]), inputs)
    plain = output(program, program.slice(genome), inputs)
    solved = output(program, compensate(genome), inputs)
    assert torch.isfinite(solved).all()
    assert (solved - dense).square().sum() <= (plain - dense).square().sum()
    assert torch.equal(solved, output(program, compensate(genome), inputs))


def planted() -> Program:
    """Return a chain whose channel 4 is twice channel 1, and channel 5 the sum of channels 0 and 2."""
    torch.manual_seed(0)
    model = Chain(conv(3, 6), nn.Identity(), conv_bn(6, 5), conv(5, 4), width=4)
    first: Any = model.layers[0]
    with torch.no_grad():
        for part in (first.weight, first.bias):
            part[4] = 2 * part[1]
            part[5] = part[0] + part[2]
    return prepared(model)[1]


def test_dropped_combinations_of_kept_channels_are_recovered_exactly() -> None:
    program, inputs = planted(), images(24)
    genome = program.space.all_ones()[0]
    dense = output(program, program.slice(genome), inputs)
    genome[[4, 5]] = False
    compensated = SequentialCompensation(program, inputs, replace(OPTIONS, damping=1e-9))(genome)
    assert not torch.allclose(output(program, program.slice(genome), inputs), dense, atol=1e-2)
    assert torch.allclose(output(program, compensated, inputs), dense, atol=1e-3)
    fresh = images(8, seed=5)
    everything = program.slice(program.space.all_ones()[0])
    assert torch.allclose(output(program, compensated, fresh), output(program, everything, fresh), atol=1e-3)


def test_target_absorbs_the_drift_of_the_shortcut() -> None:
    torch.manual_seed(0)
    _, program = prepared(Residual())
    inputs = images(24)
    ((name, (total, partner)),) = shortcut_partners(program).items()
    layer = program.layers[name]
    genome = program.space.all_ones()[0]
    inner = next(group for group in program.space.groups if group.size == 4)
    stream = next(group for group in program.space.groups if group.size == 6)
    genome[inner.start], genome[stream.start + 2] = False, False

    def values_of(tensors: Any) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        program.run(tensors, [inputs], on_value=lambda key, value: found.__setitem__(key, value.clone()))
        return found

    dense = values_of(program.slice(program.space.all_ones()[0]))
    tensors = SequentialCompensation(program, inputs, OPTIONS)(genome)
    pruned = values_of(tensors)
    source = next(step.operation.args[0].name for step in program.steps if step.layer is layer)
    positions = torch.arange(64).expand(len(inputs), 64)
    regressors = gather_patches(layer, pruned[source], positions, 8).double()
    kept = torch.from_numpy(np.flatnonzero(genome[stream.start : stream.stop]))
    aim = (gather_outputs(dense[total], positions)[:, kept] - gather_outputs(pruned[partner], positions)).double()
    columns = torch.cat([regressors, torch.ones(len(regressors), 1)], dim=1)
    solution = torch.linalg.lstsq(columns, aim, driver="gelsd").solution
    best = (aim - columns @ solution).square().mean()
    ideal = gather_outputs(dense[total], positions)[:, kept]
    reached = (gather_outputs(pruned[total], positions) - ideal).square().mean()
    assert float(reached) == pytest.approx(float(best), rel=1e-2)


def _lost_inputs(layer: FoldedLayer, genome: BoolArray) -> bool:
    return layer.is_solvable and layer.in_genes is not None and not keep_mask(layer.in_genes, genome).all()


@pytest.mark.parametrize("scale", [1e25, float("nan")])
def test_ill_conditioned_layer_stays_as_it_is(scale: float) -> None:
    _, program, inputs = program_of("convolution")
    genome = some_genome(program)
    tensors = SequentialCompensation(program, inputs * scale, OPTIONS)(genome)
    plain = program.slice(genome)
    lost_inputs = {name for name, layer in program.layers.items() if _lost_inputs(layer, genome)}
    assert lost_inputs
    assert set(tensors.uncompensated) == lost_inputs
    assert SequentialCompensation(program, inputs, OPTIONS)(genome).uncompensated == ()
    for name, weight in tensors.weights.items():
        assert torch.equal(weight, plain.weights[name])


def test_constant_zero_activations_are_no_obstacle() -> None:
    torch.manual_seed(0)
    model = Chain(conv_bn(3, 6), conv(6, 5), conv(5, 4), width=4)
    norm: Any = model.get_submodule("layers.0.1")
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.fill_(-1.0)
    _, program = prepared(model)
    tensors = SequentialCompensation(program, images(24), OPTIONS)(some_genome(program))
    assert all(torch.isfinite(weight).all() for weight in tensors.weights.values())
    assert all(torch.isfinite(bias).all() for bias in tensors.biases.values())


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(5, 4, 3, padding=1),
        nn.Conv2d(5, 4, 3),
        nn.Conv2d(5, 4, 1),
        nn.Conv2d(5, 4, 1, stride=2),
        nn.Conv2d(5, 4, (1, 3), padding=(0, 1), stride=(2, 1)),
        nn.Conv2d(5, 4, 3, padding=2, dilation=2, stride=2),
        nn.Conv2d(5, 4, 5, padding=2),
        nn.Conv2d(5, 4, 3, padding="same"),
        nn.Conv2d(5, 4, 3, padding="valid"),
        pytest.param(
            nn.Conv2d(5, 4, 3, padding="same", dilation=2),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_positions", [3, 1000])
def test_patches_are_those_of_unfold(module: nn.Conv2d, n_positions: int) -> None:
    _, program = prepared(Chain(conv(3, 5), module, width=4))
    layer: FoldedLayer = list(program.layer_order())[1]
    value = torch.randn(6, 5, 7, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = module(value)
    positions = sample_positions(out.shape, n_positions, torch.Generator().manual_seed(1))
    assert positions.shape == (6, min(n_positions, out.shape[2] * out.shape[3]))
    assert (positions.diff(dim=1) > 0).all()
    patches = gather_patches(layer, value, positions, out.shape[3])
    padding = tuple(
        {"same": gap * (kernel - 1) // 2, "valid": 0}.get(str(pad), pad)
        for pad, gap, kernel in zip(
            [module.padding] * 2 if isinstance(module.padding, str) else module.padding,
            module.dilation,
            module.kernel_size,
            strict=True,
        )
    )
    columns = F.unfold(value, module.kernel_size, module.dilation, padding, module.stride)  # (batch, c * taps, places)
    columns = columns.reshape(6, 5, -1, columns.shape[-1]).permute(0, 3, 2, 1).flatten(2)
    expected = torch.stack([columns[image, positions[image]] for image in range(6)]).flatten(0, 1)
    assert torch.equal(patches, expected)
    bias = torch.zeros(4) if module.bias is None else module.bias
    assert torch.allclose(patches @ to_rows(module.weight).T + bias, gather_outputs(out, positions), atol=1e-5)
    assert torch.equal(from_rows(to_rows(module.weight), module.weight), module.weight)


def test_solved_weights_have_plain_strides() -> None:
    weight = torch.randn(2, 1, 1, 3)
    assert from_rows(to_rows(weight), weight).stride() == weight.stride()
