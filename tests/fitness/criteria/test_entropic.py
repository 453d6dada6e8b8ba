"""Entropic sparsification against its objective, evaluated sample by sample."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fitness.criteria import CriterionInput
from fitness.criteria.entropic import EntropicSparsification, LayerRegression
from search_spaces.errors import OptionError
from search_spaces.genome import FloatArray
from tests.fitness.networks import program_of

N_GENES, N_TAPS, N_OUT, N_SAMPLES = 5, 2, 3, 60
CRITERION = EntropicSparsification(entropy=0.2, ridge=0.05)


def problem(seed: int = 0, *, dead: int | None = None, twins: tuple[int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Return inputs ``(k, samples)`` and weights ``(out, k)`` of a layer; the channel is the fastest column."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N_TAPS, N_GENES, N_SAMPLES, generator=generator, dtype=torch.float64)
    rows = torch.randn(N_OUT, N_TAPS, N_GENES, generator=generator, dtype=torch.float64)
    if dead is not None:
        inputs[:, dead] = 0
    if twins is not None:
        inputs[:, twins[1]] = inputs[:, twins[0]]
        rows[:, :, twins[1]] = rows[:, :, twins[0]]
    return inputs.flatten(0, 1), rows.flatten(1)


def regression(inputs: Tensor, rows: Tensor) -> LayerRegression:
    member = torch.arange(N_GENES).repeat(N_TAPS)
    return LayerRegression((inputs @ inputs.T / N_SAMPLES)[None], rows[None], member, N_GENES)


def brute_force(inputs: Tensor, rows: Tensor, weights: FloatArray, coefficients: Tensor) -> float:
    """Return the objective by loops over samples, outputs and columns."""
    error = energy = squares = mean_square = 0.0
    columns = range(N_TAPS * N_GENES)
    for sample in range(N_SAMPLES):
        for out in range(N_OUT):
            dense = sum(float(rows[out, k] * inputs[k, sample]) for k in columns)
            reached = sum(
                float(coefficients[out, k]) * N_GENES * weights[k % N_GENES] * float(inputs[k, sample]) for k in columns
            )
            error += (dense - reached) ** 2
            energy += dense**2
    for k in columns:
        mean_square += float(inputs[k].square().mean()) / len(columns)
        squares += float(coefficients[:, k].square().sum())
    entropy = -sum(w * math.log(w) for w in weights) / math.log(N_GENES)
    ridge = CRITERION.ridge * mean_square * squares / (energy / N_SAMPLES)
    return error / energy + ridge + CRITERION.entropy * entropy


def some_weights(seed: int = 1) -> Tensor:
    weights = torch.rand(N_GENES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    return weights / weights.sum()


def test_the_objective_is_that_of_the_samples() -> None:
    inputs, rows = problem()
    weights = some_weights()
    coefficients = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = CRITERION.objective(regression(inputs, rows), weights, coefficients[None])
    assert found == pytest.approx(brute_force(inputs, rows, weights.tolist(), coefficients))


def test_coefficients_are_the_ridge_regression() -> None:
    """Stacked least squares: the samples, and one row per column for the ridge."""
    inputs, rows = problem()
    layer, weights = regression(inputs, rows), some_weights()
    found = CRITERION.coefficients(layer, weights)[0]
    scaled = inputs * (N_GENES * weights).repeat(N_TAPS)[:, None]
    ridge = math.sqrt(CRITERION.ridge * float(inputs.square().mean()) * N_SAMPLES)
    stacked = torch.cat([scaled.T, ridge * torch.eye(len(inputs), dtype=torch.float64)])
    targets = torch.cat([(rows @ inputs).T, torch.zeros(len(inputs), N_OUT, dtype=torch.float64)])
    assert torch.allclose(found, torch.linalg.lstsq(stacked, targets).solution.T)


def test_penalties_are_the_ridge_at_a_given_product() -> None:
    inputs, rows = problem()
    layer, weights = regression(inputs, rows), some_weights()
    product = torch.randn(1, *rows.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    penalties = CRITERION.penalties(layer, product)
    ridge = float((penalties / (N_GENES * weights).square()).sum())
    coefficients = product / (N_GENES * weights).repeat(N_TAPS)
    whole = brute_force(inputs, rows, weights.tolist(), coefficients[0])
    error = float((rows @ inputs - product[0] @ inputs).square().sum() / (rows @ inputs).square().sum())
    entropy = -CRITERION.entropy * float((weights * weights.log()).sum()) / math.log(N_GENES)
    assert ridge == pytest.approx(whole - error - entropy)


@pytest.mark.parametrize("seed", range(4))
def test_more_rounds_never_raise_the_objective(seed: int) -> None:
    inputs, rows = problem(seed)
    layer = regression(inputs, rows)
    values = []
    for n_rounds in range(1, 6):
        weights = EntropicSparsification(entropy=0.2, ridge=0.05, n_rounds=n_rounds).solve(layer)
        coefficients = CRITERION.coefficients(layer, torch.from_numpy(weights))[0]
        values.append(brute_force(inputs, rows, weights, coefficients))
    uniform = np.full(N_GENES, 1 / N_GENES)
    start = brute_force(inputs, rows, uniform, CRITERION.coefficients(layer, torch.from_numpy(uniform))[0])
    assert all(later <= earlier + 1e-9 for earlier, later in zip([start, *values], values, strict=False))
    assert values[-1] < start


def test_weights_lie_on_the_simplex_and_dead_channels_have_the_least() -> None:
    weights = CRITERION.solve(regression(*problem(dead=2)))
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()
    assert weights.argmin() == 2


def test_twins_weigh_the_same_and_weights_follow_a_permutation() -> None:
    inputs, rows = problem(twins=(1, 3))
    weights = CRITERION.solve(regression(inputs, rows))
    assert weights[1] == pytest.approx(weights[3])
    order = torch.tensor([3, 0, 4, 1, 2])
    columns = torch.cat([order, order + N_GENES])
    moved = CRITERION.solve(regression(inputs[columns], rows[:, columns]))
    assert np.allclose(moved, weights[order.numpy()])


def test_more_entropy_is_sparser() -> None:
    layer = regression(*problem())
    largest = [EntropicSparsification(entropy=e, ridge=0.05).solve(layer).max() for e in (0.0, 1.0, 10.0)]
    assert largest[0] < largest[1] < largest[2]


@pytest.mark.parametrize("name", ["convolution", "concat", "grouped", "linear", "transposed"])
def test_per_channel_regressions_rank_whole_networks_too(name: str) -> None:
    _, program, inputs = program_of(name)
    data = CriterionInput(program, inputs)
    for criterion in (EntropicSparsification(), EntropicSparsification(max_columns=0)):
        scores = criterion.compute(data).scores
        assert scores is not None
        for _, group in data.groups:
            assert (scores[group.start : group.stop] >= 0).all()
            assert np.ptp(scores[group.start : group.stop]) > 0


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="0 < ridge"):
        EntropicSparsification(ridge=0.0)
    with pytest.raises(OptionError, match="n_rounds >= 1"):
        EntropicSparsification(n_rounds=0)
