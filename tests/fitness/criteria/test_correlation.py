"""Correlations and retained components against loops over the definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fitness.criteria import CriterionInput
from fitness.criteria.correlation import MapCorrelation, correlation, independence, retained_count, view_moments
from search_spaces.errors import OptionError
from search_spaces.genome import FloatArray
from tests.fitness.criteria.networks import maps_of
from tests.fitness.networks import program_of


def data_of(name: str) -> CriterionInput:
    _, program, inputs = program_of(name)
    return CriterionInput(program, inputs, torch.arange(len(inputs)) % 3, batch_size=7)


def brute_force(maps: Tensor) -> FloatArray:
    """Return Pearson's correlation of every pair of channels of ``(n, g, m, h, w)``, value by value."""
    rows = [maps[:, gene].double().flatten().tolist() for gene in range(maps.shape[1])]
    means = [sum(row) / len(row) for row in rows]
    result = np.eye(len(rows))
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            if i == j:
                continue
            cross = sum((a - means[i]) * (b - means[j]) for a, b in zip(one, other, strict=True))
            squares = [sum((value - mean) ** 2 for value in row) for row, mean in ((one, means[i]), (other, means[j]))]
            result[i, j] = cross / math.sqrt(squares[0] * squares[1]) if min(squares) > 1e-9 else 0.0
    return result


@pytest.mark.parametrize("name", ["convolution", "coupled, several readers", "flatten to linear", "grouped"])
def test_similarity_scores_and_widths_equal_the_definition(name: str) -> None:
    data = data_of(name)
    knowledge = MapCorrelation(variance_share=0.9).compute(data)
    assert knowledge.scores is not None
    assert knowledge.widths is not None
    for index, group in data.groups:
        matrices = [brute_force(view) for view in maps_of(data, index)]
        expected = sum(np.abs(matrix) for matrix in matrices) / len(matrices)
        assert np.allclose(knowledge.similarity[index], expected, atol=1e-6)
        varying = [g for g in range(group.size) if any(float(view[:, g].std()) > 0 for view in maps_of(data, index))]
        for gene in range(group.size):
            others = [expected[gene, other] for other in varying if other != gene]
            score = 1 - sum(others) / len(others) if gene in varying else 0.0
            assert knowledge.scores[group.start + gene] == pytest.approx(score, abs=1e-6)
        counts = []
        for matrix, view in zip(matrices, maps_of(data, index), strict=True):
            alive = [g for g in range(group.size) if float(view[:, g].std()) > 0]
            values = sorted(np.linalg.eigvalsh(matrix[np.ix_(alive, alive)]), reverse=True)
            counts.append(next(k for k in range(1, len(values) + 1) if sum(values[:k]) >= 0.9 * sum(values) - 1e-9))
        assert knowledge.widths[index] == pytest.approx(max(counts) / group.size)


def test_constant_channels_correlate_with_nothing_and_are_worth_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, 500))
    rows[1] = 0.0
    rows[2] = 3.0
    matrix, constant = correlation(rows.mean(axis=1), rows @ rows.T / 500)
    assert constant.tolist() == [False, True, True, False]
    assert matrix[0, 1] == matrix[0, 2] == matrix[1, 2] == 0
    scores = independence(np.abs(matrix), constant)
    assert scores[1] == scores[2] == 0
    assert scores[0] == pytest.approx(1 - abs(np.corrcoef(rows[0], rows[3])[0, 1]))


def test_retained_components_of_known_spectra() -> None:
    assert retained_count(np.eye(10), 0.95) == 10
    assert retained_count(np.eye(10), 0.5) == 5
    assert retained_count(np.ones((6, 6)), 0.95) == 1
    assert retained_count(np.kron(np.eye(3), np.ones((2, 2))), 1.0) == 3
    assert retained_count(np.zeros((0, 0)), 0.95) == 1


def test_moments_do_not_depend_on_the_batch_size() -> None:
    _, program, inputs = program_of("coupled, several readers")
    whole = view_moments(CriterionInput(program, inputs, batch_size=100))
    parts = view_moments(CriterionInput(program, inputs, batch_size=5))
    for index, views in whole.items():
        for (mean, second), (other_mean, other_second) in zip(views, parts[index], strict=True):
            assert np.allclose(mean, other_mean)
            assert np.allclose(second, other_second)


def test_a_share_outside_of_its_range_is_refused() -> None:
    with pytest.raises(OptionError, match="variance_share <= 1"):
        MapCorrelation(variance_share=1.5)
