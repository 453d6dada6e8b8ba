from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fitness.criteria import CriterionInput
from search_spaces.errors import DataError, OptionError
from tests.fitness.criteria.networks import data_of, maps_of


def model_of(data: CriterionInput) -> nn.Module:
    assert data.model is not None
    return copy.deepcopy(data.model).double()


def index_of(data: CriterionInput, name: str) -> int:
    return [group.name for group in data.space.groups].index(name)


@pytest.mark.parametrize("kind", ["read", "made"])
def test_maps_are_the_modules_outputs(kind: str) -> None:
    data = data_of("convolution", 5)
    x = data.inputs.double()
    for index, layer in enumerate(model_of(data).layers):  # type: ignore[arg-type]
        made = layer[:2](x)
        x = layer(x)
        (found,) = maps_of(data, index, kind)  # type: ignore[arg-type]  # a name from a table
        expected = x if kind == "read" else made
        assert found.shape == (5, data.space.groups[index].size, 1, 8, 8)
        assert torch.allclose(found[:, :, 0].double(), expected, atol=1e-4)


def test_coupled_group_has_a_view_per_value_and_a_filter_per_producer() -> None:
    data = data_of("coupled, several readers", 5)
    model, stream = model_of(data), index_of(data, "stem.0")
    x = model.stem(data.inputs.double())  # type: ignore[operator]
    y = torch.relu(x + model.outer(model.inner(x)))  # type: ignore[operator]
    views = maps_of(data, stream)
    assert len(views) == 2
    for view, expected in zip(views, (x, y), strict=True):
        assert torch.allclose(view[:, :, 0].double(), expected, atol=1e-4)
    weights = [model.get_parameter(f"{path}.weight") for path in ("stem.0", "outer.0")]
    for found, weight in zip(data.filters(stream), weights, strict=True):
        assert torch.allclose(found[:, 0], weight.flatten(2))
    assert len(data.consumers(stream)) == 2
    assert torch.allclose(data.consumers(stream)[1][:, 0, :, 0], model.get_parameter("head.weight").T, atol=1e-6)


def test_folded_filters_hold_the_batch_norm() -> None:
    data = data_of("convolution")
    convolution, norm = model_of(data).layers[0][:2]  # type: ignore[index]
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    (found,) = data.filters(0, folded=True)
    assert torch.allclose(found[:, 0], convolution.weight.flatten(2) * scale[:, None, None], rtol=1e-5)


def test_flattened_features_are_maps_again() -> None:
    data = data_of("flatten to linear", 5)
    index = index_of(data, "features.2")
    assert maps_of(data, index)[0].shape == (5, 4, 1, 4, 4)
    expected = model_of(data).features(data.inputs.double())  # type: ignore[operator]
    assert torch.allclose(maps_of(data, index)[0][:, :, 0].double(), expected, atol=1e-4)


def test_gene_of_a_grouped_convolution_holds_a_channel_per_group() -> None:
    data = data_of("grouped", 3)
    shapes = {group.name: maps_of(data, index)[0].shape[1:3] for index, group in data.groups}
    assert any(m > 1 for _, m in shapes.values())
    for index, group in data.groups:
        assert shapes[group.name][0] == group.size == len(data.filters(index)[0])


def test_streams_differ_and_repeat() -> None:
    data = data_of("convolution")
    assert data.rng("a").random() == data.rng("a").random() != data.rng("b").random()
    numbers = [torch.rand(1, generator=data.torch_generator(stream)).item() for stream in ("a", "a", "b")]
    assert numbers[0] == numbers[1] != numbers[2]


def test_scores_of_blocks_and_unread_groups() -> None:
    data = data_of("convolution")
    scores = data.gather_scores({1: np.array([1.0, 2.0, 3.0, 4.0])})
    assert scores.tolist() == [0.0] * 6 + [1.0, 2.0, 3.0, 4.0] + [0.0] * 5


def test_misuse_is_told() -> None:
    data = data_of("convolution", 5)
    with pytest.raises(DataError, match="one finite calibration image"):
        CriterionInput(data.program, data.inputs[:0])
    with pytest.raises(DataError, match="not finite"):
        CriterionInput(data.program, data.inputs * float("nan"))
    for labels in (torch.zeros(4, dtype=torch.int64), torch.zeros(5), torch.full((5,), -1)):
        with pytest.raises(DataError, match="labels must be 5 classes"):
            CriterionInput(data.program, data.inputs, labels)
    with pytest.raises(OptionError, match="batch_size >= 1"):
        CriterionInput(data.program, data.inputs, batch_size=0)
