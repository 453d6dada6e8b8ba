from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch

from fitness.criteria import CriterionInput
from fitness.criteria.feature_maps import FeatureMapSimilarity, MapRank
from search_spaces.errors import OptionError
from tests.fitness.criteria.networks import data_of

N_IMAGES = 5


def chain_maps(data: CriterionInput) -> list[list[np.ndarray]]:
    """Return per group the values that layers read, ``(n, g, h, w)`` float64, from the modules themselves."""
    assert data.model is not None
    model = copy.deepcopy(data.model).double()
    values, found = data.inputs.double(), []
    with torch.no_grad():
        for layer in model.layers:  # type: ignore[union-attr, operator]
            values = layer(values)
            found.append([values.numpy()])
    return found


def residual_maps(data: CriterionInput) -> list[list[np.ndarray]]:
    assert data.model is not None
    model = copy.deepcopy(data.model).double()
    with torch.no_grad():
        stem = model.stem(data.inputs.double())  # type: ignore[operator]
        inner = model.inner(stem)  # type: ignore[operator]
        end = torch.relu(stem + model.outer(inner))  # type: ignore[operator]
    by_name = {"stem.0": [stem.numpy(), end.numpy()], "inner.0": [inner.numpy()]}
    return [by_name[group.name] for group in data.space.groups]


CASES = [("convolution", chain_maps), ("coupled, several readers", residual_maps)]


def scaled(image: np.ndarray) -> np.ndarray:
    return (image - image.min()) / (image.max() - image.min())


def ssim(x: np.ndarray, y: np.ndarray) -> float:
    n = x.size
    mean_x, mean_y = sum(x.flat) / n, sum(y.flat) / n
    var_x = sum((a - mean_x) ** 2 for a in x.flat) / n
    var_y = sum((b - mean_y) ** 2 for b in y.flat) / n
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x.flat, y.flat, strict=True)) / n
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return above / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def psnr(x: np.ndarray, y: np.ndarray) -> float:
    error = sum((a - b) ** 2 for a, b in zip(x.flat, y.flat, strict=True)) / x.size
    return 60.0 if error == 0 else min(60.0, 10 * math.log10(1 / error))


@pytest.mark.parametrize(
    ("measure", "formula"), [("ssim", lambda x, y: (1 + ssim(x, y)) / 2), ("psnr", lambda x, y: psnr(x, y) / 60)]
)
@pytest.mark.parametrize(("name", "maps_of"), CASES)
def test_similarity_is_the_mean_over_images_and_values(name, maps_of, measure, formula) -> None:  # type: ignore[no-untyped-def]
    data = data_of(name, N_IMAGES)
    knowledge = FeatureMapSimilarity(measure).compute(data)
    for index, values in enumerate(maps_of(data)):
        size = data.space.groups[index].size
        for i in range(size):
            for j in range(i):
                parts = []
                for value in values:
                    for image in value:
                        whole = scaled(image)
                        parts.append(formula(whole[i], whole[j]))
                assert knowledge.similarity[index][i, j] == pytest.approx(sum(parts) / len(parts), abs=2e-5)
        assert np.diag(knowledge.similarity[index]) == pytest.approx(1.0)


@pytest.mark.parametrize(("name", "maps_of"), CASES)
def test_strength_is_the_mean_magnitude(name, maps_of) -> None:  # type: ignore[no-untyped-def]
    data = data_of(name, N_IMAGES)
    strength = FeatureMapSimilarity().compute(data).strength
    assert strength is not None
    for group, values in zip(data.space.groups, maps_of(data), strict=True):
        expected = np.mean([np.abs(value).mean(axis=(0, 2, 3)) for value in values], axis=0)
        assert strength[group.start : group.stop] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("name", "maps_of"), CASES)
def test_rank_is_the_mean_over_images_and_values(name, maps_of) -> None:  # type: ignore[no-untyped-def]
    data = data_of(name, N_IMAGES)
    scores = MapRank().compute(data).scores
    assert scores is not None
    for group, values in zip(data.space.groups, maps_of(data), strict=True):
        for channel in range(group.size):
            ranks = []
            for value in values:
                for image in value:
                    singular = np.linalg.svd(image[channel], compute_uv=False)
                    tolerance = singular.max() * max(image[channel].shape) * np.finfo(np.float32).eps
                    ranks.append(int((singular > tolerance).sum()))
            assert scores[group.start + channel] == pytest.approx(sum(ranks) / len(ranks))


def test_rank_uses_the_first_images() -> None:
    data = data_of("convolution", N_IMAGES)
    fewer = CriterionInput(data.program, data.inputs[:2])
    assert np.array_equal(MapRank(2).compute(data).scores, MapRank().compute(fewer).scores)


@pytest.mark.parametrize("measure", ["ssim", "psnr"])
def test_batches_do_not_matter(measure: str) -> None:
    data = data_of("coupled, several readers", N_IMAGES)
    small = CriterionInput(data.program, data.inputs, batch_size=2)
    one, other = (FeatureMapSimilarity(measure).compute(entry) for entry in (data, small))  # type: ignore[arg-type]
    for index, matrix in one.similarity.items():
        assert other.similarity[index] == pytest.approx(matrix, abs=1e-5)


def test_options_are_checked() -> None:
    with pytest.raises(OptionError, match="measure must be ssim or psnr"):
        FeatureMapSimilarity("mse")  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="n_images >= 1"):
        MapRank(0)
