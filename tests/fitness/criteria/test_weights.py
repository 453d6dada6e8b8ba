from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from fitness.criteria import CriterionInput
from fitness.criteria.weights import BatchNormScale, FilterNorm, GeometricMedian, RandomScores
from tests.fitness.criteria.networks import data_of


def weight_of(data: CriterionInput, path: str) -> np.ndarray:
    assert data.model is not None
    return data.model.get_parameter(f"{path}.weight").double().numpy()


def score_of(data: CriterionInput, name: str, scores: np.ndarray | None) -> np.ndarray:
    assert scores is not None
    group = next(group for group in data.space.groups if group.name == name)
    return scores[group.start : group.stop]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", ["convolution", "coupled, several readers"])
def test_norm_is_that_of_all_weights_of_a_channel(order: int, name: str) -> None:
    data = data_of(name)
    scores = FilterNorm(order).compute(data).scores  # type: ignore[arg-type]
    for group in data.space.groups:
        for channel in range(group.size):
            total = 0.0
            for layer in group.layers:
                for value in weight_of(data, layer)[channel].ravel():
                    total += abs(value) ** order
            expected = total ** (1 / order)
            assert score_of(data, group.name, scores)[channel] == pytest.approx(expected, rel=1e-12)


def test_grouped_convolution_counts_every_channel_of_a_gene() -> None:
    data = data_of("grouped")
    scores = FilterNorm(1).compute(data).scores
    assert scores is not None
    names = dict(data.model.named_modules()) if data.model is not None else {}
    group = next(g for g in data.space.groups if getattr(names[g.name], "groups", 1) > 1)
    weight = weight_of(data, group.name)
    genes = data.space.slot_genes[f"{group.name}.weight", 0]
    for gene in range(group.start, group.stop):
        assert scores[gene] == pytest.approx(sum(abs(weight[c]).sum() for c in np.flatnonzero(genes == gene)))


def test_transposed_filters_are_those_of_the_output_channel() -> None:
    data = data_of("transposed")
    assert data.model is not None
    scores = FilterNorm(1).compute(data).scores
    for group in data.space.groups:
        module = data.model.get_submodule(group.name)
        if isinstance(module, nn.ConvTranspose2d) and module.groups == 1:
            expected = module.weight.double().abs().sum(dim=(0, 2, 3)).numpy()
            assert score_of(data, group.name, scores) == pytest.approx(expected)
            return
    raise AssertionError("the network has no transposed convolution with genes")


def test_scale_is_the_magnitude_of_gamma() -> None:
    data = data_of("convolution")
    assert data.model is not None
    knowledge = BatchNormScale().compute(data)
    for index, group in enumerate(data.space.groups):
        gamma = data.model.get_parameter(f"layers.{index}.1.weight").double()
        assert score_of(data, group.name, knowledge.scores) == pytest.approx(gamma.abs().numpy())
    assert knowledge.is_global


def test_coupled_scales_are_averaged_and_layers_without_one_count_as_one() -> None:
    data = data_of("coupled, several readers")
    assert data.model is not None
    gammas = [data.model.get_parameter(path).abs().double() for path in ("stem.1.weight", "outer.1.weight")]
    scores = BatchNormScale().compute(data).scores
    assert score_of(data, "stem.0", scores) == pytest.approx(((gammas[0] + gammas[1]) / 2).numpy())
    assert BatchNormScale().compute(data_of("no bias")).scores == pytest.approx(1.0)


def test_distances_to_all_other_filters() -> None:
    data = data_of("coupled, several readers")
    scores = GeometricMedian().compute(data).scores
    for group in data.space.groups:
        for i in range(group.size):
            total = 0.0
            for layer in group.layers:
                weight = weight_of(data, layer)
                for j in range(group.size):
                    total += math.sqrt(sum((a - b) ** 2 for a, b in zip(weight[i].flat, weight[j].flat, strict=True)))
            assert score_of(data, group.name, scores)[i] == pytest.approx(total, rel=1e-12)


def test_filter_at_the_median_goes_first() -> None:
    data = data_of("convolution")
    assert data.model is not None
    weight = data.model.get_parameter("layers.0.0.weight")
    median = weight[1:].mean(dim=0)
    inner = min(float((median - other).norm()) for other in weight[1:])
    assert inner > 0
    original = weight.clone()
    try:
        with torch.no_grad():
            weight[0] = median
        fresh = CriterionInput(type(data.program)(data.space, dict(data.model.state_dict())), data.inputs)
        scores = score_of(data, "layers.0.0", GeometricMedian().compute(fresh).scores)
        assert scores.argmin() == 0
    finally:
        with torch.no_grad():
            weight.copy_(original)


def test_random_scores_follow_the_seed() -> None:
    data = data_of("convolution")
    other = CriterionInput(data.program, data.inputs, seed=1)
    one, two = RandomScores().compute(data).scores, RandomScores().compute(other).scores
    assert one is not None
    assert two is not None
    assert not np.array_equal(one, two)
    assert ((one >= 0) & (one < 1)).all()
