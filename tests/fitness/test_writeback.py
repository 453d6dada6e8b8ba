from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fitness.compensation import CompensationOptions, SequentialCompensation
from fitness.merging import MergeCompensation
from fitness.program import Program, SlicedTensors
from fitness.static_compensation import StaticCompensation
from fitness.statistics import StatisticsOptions, collect_statistics
from fitness.writeback import compensated_model
from search_spaces.genome import BoolArray
from search_spaces.models import hash_weights
from tests.fitness.networks import NETWORKS, images, prepared, program_of
from tests.search_spaces.patterns import Chain, conv, conv_bn

Compensation = Callable[[BoolArray], SlicedTensors]
COMPENSATIONS: dict[str, Callable[[Program, Tensor], Compensation]] = {
    "none": lambda program, _: program.slice,
    "static": lambda program, inputs: StaticCompensation(
        program, collect_statistics(program, inputs, StatisticsOptions())
    ),
    "sequential": lambda program, inputs: SequentialCompensation(program, inputs, CompensationOptions()),
    "merge": lambda program, inputs: MergeCompensation(program, inputs),
}


def some_genome(program: Program) -> BoolArray:
    rng = np.random.default_rng(0)
    return program.space.repair(rng.random((1, program.space.n_genes)) < 0.6, rng=rng)[0]


def check(model: nn.Module, program: Program, inputs: Tensor, compensation: str) -> nn.Module:
    before = hash_weights(model)
    tensors = COMPENSATIONS[compensation](program, inputs)(some_genome(program))
    small = compensated_model(model, program, tensors)
    with torch.no_grad():
        expected = program.run(tensors, [inputs])[program.outputs[0]]
        found = small(inputs)
    scale = float(expected.abs().max())
    assert torch.allclose(found, expected, atol=1e-4 * max(scale, 1.0))
    assert hash_weights(model) == before
    assert not small.training
    return small


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_module_predicts_what_the_program_predicts(name: str, compensation: str) -> None:
    model, program, inputs = program_of(name)
    check(model, program, inputs, compensation)


@pytest.mark.parametrize("compensation", COMPENSATIONS)
@pytest.mark.parametrize("scale", [0.0, 1e-30, -1e-5])
def test_batch_norms_that_scale_by_nothing(scale: float, compensation: str) -> None:
    torch.manual_seed(0)
    model = Chain(conv_bn(3, 6), conv_bn(6, 5), conv(5, 4), width=4)
    norm: Any = model.layers[1][1]  # type: ignore[index]
    with torch.no_grad():
        norm.weight[[0, 2, 3]] = scale
        norm.bias.normal_()
    model, program = prepared(model)  # type: ignore[assignment]
    check(model, program, images(24), compensation)


@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_layers_without_bias_keep_none(compensation: str) -> None:
    model, program, inputs = program_of("no bias")
    small = check(model, program, inputs, compensation)
    assert all(layer.bias is None for layer in small.modules() if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("compensation", COMPENSATIONS)
def test_batch_norm_without_affine(compensation: str) -> None:
    torch.manual_seed(0)
    model = Chain(conv(3, 6), nn.ReLU(), conv(6, 5), nn.BatchNorm2d(5, affine=False), nn.ReLU(), conv(5, 4), width=4)
    for _ in range(5):
        model.train()(images(24))
    model, program = prepared(model)  # type: ignore[assignment]
    check(model, program, images(24), compensation)
