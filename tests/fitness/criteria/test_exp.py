from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fitness.criteria import CriterionInput
from fitness.criteria.exp import ExpectationClasses
from search_spaces.errors import OptionError
from tests.fitness.criteria.networks import data_of


def levels_of(weight: np.ndarray, n_levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return S and Psi / max|Psi| of every slice, written from the formula."""
    sums = np.zeros(weight.shape[:2])
    for f, c in np.ndindex(sums.shape):
        sums[f, c] = sum(weight[f, c].ravel())
    scaled = sums / np.abs(sums).max()
    levels = np.zeros(sums.shape)
    for f, c in np.ndindex(sums.shape):
        levels[f, c] = round(n_levels * (1 / (1 + math.exp(-2 * scaled[f, c])) - 0.5))
    return levels, scaled


def distance_of(weight: np.ndarray, n_levels: int = 13) -> tuple[np.ndarray, np.ndarray]:
    levels, scaled = levels_of(weight, n_levels)
    n, c = levels.shape
    coarse, fine = np.zeros((n, n)), np.zeros((n, n))
    for i, j in np.ndindex(n, n):
        coarse[i, j] = sum(abs(levels[i, k] - levels[j, k]) for k in range(c)) / c / (levels.max() - levels.min())
        fine[i, j] = sum(abs(scaled[i, k] - scaled[j, k]) for k in range(c)) / c / 2
    return coarse, fine


def agglomerated(distance: np.ndarray, at_most: float) -> set[frozenset[int]]:
    """Join the two nearest clusters, by mean distance, while they are near enough."""
    clusters = [frozenset([i]) for i in range(len(distance))]
    while len(clusters) > 1:
        nearest, pair = min(
            (np.mean([distance[i, j] for i in a for j in b]), (a, b)) for a, b in itertools.combinations(clusters, 2)
        )
        if nearest > at_most:
            break
        clusters = [cluster for cluster in clusters if cluster not in pair] + [pair[0] | pair[1]]
    return set(clusters)


def classes_in(classes: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(classes == value).tolist()) for value in np.unique(classes)}


@pytest.mark.parametrize("n_levels", [5, 13])
@pytest.mark.parametrize("name", ["convolution", "coupled, several readers", "no bias"])
def test_similarity_and_classes_are_those_of_the_formula(name: str, n_levels: int) -> None:
    data = data_of(name)
    assert data.model is not None
    knowledge = ExpectationClasses(n_levels=n_levels).compute(data)
    assert knowledge.classes is not None
    for index, group in enumerate(data.space.groups):
        found = [
            distance_of(data.model.get_parameter(f"{layer}.weight").double().numpy(), n_levels)
            for layer in group.layers
        ]
        coarse, fine = (np.mean(parts, axis=0) for parts in zip(*found, strict=True))
        assert knowledge.similarity[index] == pytest.approx(1 - coarse)
        joint = coarse + 1e-6 * fine
        threshold = 0.9 * joint[np.triu_indices(group.size, 1)].mean()
        assert classes_in(knowledge.classes[group.start : group.stop]) == agglomerated(joint, threshold)


def test_levels_are_a_rounded_hyperbolic_tangent() -> None:
    sums = torch.linspace(-1, 1, 41, dtype=torch.float64)
    found = ExpectationClasses().levels(sums, torch.tensor(1.0, dtype=torch.float64))
    assert found.tolist() == [round(13 / 2 * math.tanh(z)) for z in sums.tolist()]
    assert (found.min(), found.max()) == (-5, 5)


def test_way_a_protects_large_scales_and_singletons() -> None:
    data = data_of("convolution")
    assert data.model is not None
    knowledge = ExpectationClasses("A").compute(data)
    assert knowledge.scores is not None
    assert knowledge.classes is not None
    for index, group in enumerate(data.space.groups):
        gamma = data.model.get_parameter(f"layers.{index}.1.weight").abs().double().numpy()
        classes = knowledge.classes[group.start : group.stop]
        for channel in range(group.size):
            n = int((classes == classes[channel]).sum())
            expected = 1 - (n - 1) / n * (1 - gamma[channel] / gamma.max())
            assert knowledge.scores[group.start + channel] == pytest.approx(expected)


def test_no_threshold_joins_equals_alone() -> None:
    knowledge = ExpectationClasses(threshold=0.0).compute(data_of("convolution"))
    assert knowledge.classes is not None
    for start, size in zip(knowledge.starts, knowledge.sizes, strict=True):
        assert len(np.unique(knowledge.classes[start : start + size])) == size


@pytest.mark.parametrize("options", [{"way": "C"}, {"n_levels": 0}, {"threshold": -1.0}, {"threshold": float("nan")}])
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match="must hold"):
        ExpectationClasses(**options)  # type: ignore[arg-type]


def test_no_image_is_looked_at() -> None:
    data = data_of("convolution")
    other = CriterionInput(data.program, -data.inputs)
    one, two = (ExpectationClasses().compute(entry).classes for entry in (data, other))
    assert np.array_equal(one, two)
