from __future__ import annotations

import math

import numpy as np
import pytest

from fitness.criteria import CriterionInput
from fitness.criteria.texture import DynamicThreshold, TextureAngle
from search_spaces.errors import OptionError
from tests.fitness.criteria.networks import data_of

NAMES = ["convolution", "coupled, several readers", "pointwise"]


def skeleton_of(data: CriterionInput, layer: str) -> np.ndarray:
    """Return the surrogate ``(F, K * K)`` by loops, mean 1."""
    assert data.model is not None
    weight = data.model.get_parameter(f"{layer}.weight").double().numpy()
    n_filters, n_inputs = weight.shape[:2]
    flat = weight.reshape(n_filters, n_inputs, -1)
    skeleton = np.zeros((n_filters, flat.shape[2]))
    for f, k in np.ndindex(skeleton.shape):
        skeleton[f, k] = sum(abs(flat[f, c, k]) for c in range(n_inputs)) / n_inputs
    return skeleton / (skeleton.sum() / skeleton.size)


def kept_by_container(skeleton: np.ndarray, theta: float) -> np.ndarray:
    """Return which filters have a stripe above their container, step by step as published."""
    lengths = [sum(row) for row in skeleton]
    mean = sum(lengths) / len(lengths)
    kept = []
    for row, length in zip(skeleton, lengths, strict=True):
        threshold = theta * mean / length
        kept.append(any(entry > threshold for entry in row))
    return np.array(kept)


@pytest.mark.parametrize("name", ["convolution", "pointwise", "no bias"])
def test_masks_are_those_of_the_container(name: str) -> None:
    data = data_of(name)
    knowledge = DynamicThreshold().compute(data)
    assert knowledge.family is not None
    for theta, mask in zip(knowledge.family.dials, knowledge.family.masks, strict=True):
        for group in data.space.groups:
            expected = kept_by_container(skeleton_of(data, group.name), theta)
            assert np.array_equal(mask[group.start : group.stop], expected)


@pytest.mark.parametrize("name", NAMES)
def test_score_is_the_dial_at_which_a_filter_goes(name: str) -> None:
    data = data_of(name)
    scores = DynamicThreshold().compute(data).scores
    assert scores is not None
    for group in data.space.groups:
        for channel in range(group.size):
            parts = []
            for layer in group.layers:
                skeleton = skeleton_of(data, layer)
                mean = sum(sum(row) for row in skeleton) / len(skeleton)
                parts.append(max(skeleton[channel]) * sum(skeleton[channel]) / mean)
            assert scores[group.start + channel] == pytest.approx(sum(parts) / len(parts))


@pytest.mark.parametrize("n_dials", [1, 7])
def test_family_keeps_less_and_less(n_dials: int) -> None:
    family = DynamicThreshold(n_dials).compute(data_of("convolution")).family
    assert family is not None
    assert family.masks.shape == (n_dials, 15)
    assert (np.diff(family.dials) >= 0).all()
    kept = family.masks.sum(axis=1)
    assert (np.diff(kept) <= 0).all()
    if n_dials > 1:
        assert (kept[0], kept[-1]) == (14, 1)


@pytest.mark.parametrize("name", NAMES)
def test_angle_to_the_mean_skeleton(name: str) -> None:
    data = data_of(name)
    scores = TextureAngle().compute(data).scores
    assert scores is not None
    for group in data.space.groups:
        for channel in range(group.size):
            parts = []
            for layer in group.layers:
                skeleton = skeleton_of(data, layer)
                n_taps = skeleton.shape[1]
                if n_taps == 1:
                    continue
                mean = [sum(row[k] for row in skeleton) / len(skeleton) for k in range(n_taps)]
                own = skeleton[channel]
                product = sum(a * b for a, b in zip(own, mean, strict=True))
                lengths = math.sqrt(sum(a * a for a in own)) * math.sqrt(sum(b * b for b in mean))
                similarity = 1 - math.acos(product / (lengths + 1e-7)) / math.pi
                parts.append(1 - similarity)
            expected = sum(parts) / len(parts) if parts else 0.0
            assert scores[group.start + channel] == pytest.approx(expected, abs=1e-9)


def test_number_of_dials_is_checked() -> None:
    with pytest.raises(OptionError, match="n_dials >= 1"):
        DynamicThreshold(0)
