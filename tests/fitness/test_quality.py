"""The figures by which a candidate is judged."""

from __future__ import annotations

import math

import pytest
import torch

from fitness.quality import JudgedImages, quality


def _images(logits: torch.Tensor, *parts: int) -> JudgedImages:
    n, n_classes = logits.shape
    labels = torch.nn.functional.one_hot(torch.arange(n) % n_classes, n_classes).float()
    return JudgedImages(torch.zeros(n, 1), labels, torch.log_softmax(logits, dim=1), parts or (n,))


def test_kl_is_the_sum_over_classes_meant_over_images() -> None:
    generator = torch.Generator().manual_seed(0)
    dense, small = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    for temperature in (1.0, 4.0):
        p, q = (dense / temperature).softmax(1), (small / temperature).softmax(1)
        expected = sum(
            float(p[i, c]) * (math.log(float(p[i, c])) - math.log(float(q[i, c]))) for i in range(6) for c in range(4)
        )
        found = quality(small, _images(dense), temperature)
        assert found["kl"] == pytest.approx(expected / 6 * temperature**2, rel=1e-4)
    assert found["kl_plain"] == pytest.approx(quality(small, _images(dense))["kl"])


def test_at_high_temperature_kl_is_the_squared_error_of_centred_logits() -> None:
    generator = torch.Generator().manual_seed(1)
    dense, small = torch.randn(5, 10, generator=generator), torch.randn(5, 10, generator=generator)
    gap = (dense - small) - (dense - small).mean(1, keepdim=True)
    expected = float(gap.square().sum(1).mean()) / (2 * 10)
    assert quality(small, _images(dense), 1000.0)["kl"] == pytest.approx(expected, rel=1e-2)


def test_parts_count_alike_whatever_their_size_and_scale() -> None:
    dense = torch.tensor([[1.0, 0.0]] * 3)
    small = torch.tensor([[1.5, 0.0], [1.5, 0.0], [9.0, 0.0]])
    first, second = (quality(small[i : i + 1], _images(dense[i : i + 1]))["kl"] for i in (0, 2))
    assert quality(small, _images(dense, 2, 1))["kl"] == pytest.approx(math.sqrt(first * second))


def test_the_dense_network_has_no_divergence_and_small_ones_are_told_apart() -> None:
    dense = torch.randn(8, 10, generator=torch.Generator().manual_seed(2))
    images = _images(dense)
    nudge = torch.zeros_like(dense)
    nudge[:, 0] = 1e-5
    values = [quality(dense + k * nudge, images, 16.0)["kl"] for k in (0, 1, 2)]
    assert values[0] == pytest.approx(0.0, abs=1e-12)
    assert 0 < values[1] < values[2]


def test_nan_stays_nan() -> None:
    dense = torch.zeros(2, 3)
    assert math.isnan(quality(torch.full((2, 3), math.nan), _images(dense))["kl"])
