"""A convolution of small maps as a matrix product is the convolution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fitness.program import Program, SlicedTensors
from fitness.small_maps import SmallMapMatrices, is_cheaper_as_matrix
from search_spaces import SearchSpace, prune_model
from search_spaces.surgery import named_tensors
from search_spaces.verification import randomise, relative_difference


def _network(size: tuple[int, int], **convolution: Any) -> tuple[nn.Module, torch.Tensor]:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 10, **convolution),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 4),
    ).eval()
    randomise(model)
    return model, torch.randn(5, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "convolution"),
    [
        ((2, 2), {"kernel_size": 3, "padding": 1}),
        ((1, 1), {"kernel_size": 3, "padding": 1}),
        ((2, 3), {"kernel_size": 3, "padding": 1}),
        ((2, 2), {"kernel_size": 3, "padding": 1, "stride": 2}),
        ((2, 2), {"kernel_size": 3, "padding": 1, "stride": (1, 2), "bias": False}),
        ((3, 2), {"kernel_size": (3, 5), "padding": (1, 2)}),
        ((2, 2), {"kernel_size": 3, "padding": 2, "dilation": 2}),
        ((3, 3), {"kernel_size": 5, "padding": 4, "dilation": (1, 2), "stride": 2}),
        ((2, 2), {"kernel_size": 3, "padding": "same"}),
        ((4, 4), {"kernel_size": (5, 4), "padding": (1, 0)}),
        ((3, 3), {"kernel_size": 4, "padding": 1}),
    ],
)
def test_equals_the_convolution(size: tuple[int, int], convolution: dict[str, Any], dtype: torch.dtype) -> None:
    model, images = _network(size, **convolution)
    space = SearchSpace.trace(model, images[:1], verify=False)
    program = Program(space, named_tensors(model))
    layer = next(layer for layer in program.layers.values() if layer.kernel not in ((), (1, 1)))
    genome = space.sample(rng=np.random.default_rng(0), n=1, macs_budget=0.6)[0]
    tensors = program.slice(genome).cast(dtype)
    with torch.inference_mode():
        expected = prune_model(model, space, genome)(images)
        actual = program.run(tensors, [images.to(dtype)])[program.outputs[0]].float()
    assert list(tensors.matrices.made) == [layer.name]
    assert relative_difference(expected, actual) < (1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize(
    ("size", "convolution"),
    [
        ((3, 3), {"kernel_size": 3, "padding": 1}),
        ((2, 4), {"kernel_size": 3, "padding": 1}),
        ((2, 2), {"kernel_size": 1}),
        ((2, 2), {"kernel_size": 3, "padding": 1, "groups": 2}),
        ((2, 2), {"kernel_size": 4, "padding": "same"}),
        ((2, 2), {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"}),
    ],
)
def test_other_convolutions_are_left_alone(size: tuple[int, int], convolution: dict[str, Any]) -> None:
    model, images = _network(size, **convolution)
    tensors, _ = _run(model, images)
    assert not tensors.matrices.made


def test_replaced_weights_get_a_new_matrix() -> None:
    model, images = _network((2, 2), kernel_size=3, padding=1)
    tensors, first = _run(model, images)
    (name,) = tensors.matrices.made
    tensors.weights[name] = tensors.weights[name] * 2
    tensors.biases[name] = tensors.biases[name] * 2
    space = SearchSpace.trace(model, images[:1], verify=False)
    program = Program(space, named_tensors(model))
    with torch.inference_mode():
        doubled = program.run(tensors, [images])[program.outputs[0]]
    with torch.no_grad():
        model[3].weight *= 2
        model[3].bias *= 2
        expected = model(images)
    assert relative_difference(expected, doubled) < 1e-5
    assert not torch.allclose(first, doubled)


def test_nothing_is_kept_where_gradients_are_wanted() -> None:
    model, images = _network((2, 2), kernel_size=3, padding=1)
    program = Program(SearchSpace.trace(model, images[:1], verify=False), named_tensors(model))
    layer = next(layer for layer in program.layers.values() if layer.kernel == (3, 3))
    maps = torch.zeros(1, 12, 2, 2)
    assert not is_cheaper_as_matrix(layer, maps)
    with torch.inference_mode():
        assert is_cheaper_as_matrix(layer, maps)


def test_a_matrix_is_made_once_for_a_weight_and_a_size() -> None:
    model, images = _network((2, 2), kernel_size=3, padding=1)
    program = Program(SearchSpace.trace(model, images[:1], verify=False), named_tensors(model))
    layer = next(layer for layer in program.layers.values() if layer.kernel == (3, 3))
    matrices = SmallMapMatrices()
    first = matrices.of(layer, layer.weight, (2, 2))
    assert first.shape == (40, 48)
    assert matrices.of(layer, layer.weight, (2, 2)) is first
    assert matrices.of(layer, layer.weight, (2, 3)).shape == (60, 72)


def _run(model: nn.Module, images: torch.Tensor) -> tuple[SlicedTensors, torch.Tensor]:
    space = SearchSpace.trace(model, images[:1], verify=False)
    program = Program(space, named_tensors(model))
    tensors = program.slice(space.all_ones()[0])
    with torch.inference_mode():
        return tensors, program.run(tensors, [images])[program.outputs[0]]
