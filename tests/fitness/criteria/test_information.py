"""Entropy, rank and their fusion against loops; channel values from evaluated genomes against their definition."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from fitness.criteria import CriterionInput, shapley_values
from fitness.criteria.information import Information, harmonic_mean, histogram, map_ranks, normalised_entropy
from search_spaces.errors import GenomeShapeError, OptionError
from tests.fitness.criteria.networks import maps_of
from tests.fitness.networks import program_of


def entropy_of(values: list[float], n_bins: int) -> float:
    low, high = min(values), max(values)
    counts = [0] * n_bins
    for value in values:
        counts[min(int((value - low) / (high - low) * n_bins), n_bins - 1) if high > low else 0] += 1
    shares = [count / len(values) for count in counts if count]
    return -sum(share * math.log(share) for share in shares) / math.log(n_bins)


@pytest.mark.parametrize("name", ["convolution", "coupled, several readers", "flatten to linear", "grouped"])
def test_scores_and_widths_equal_the_definition(name: str) -> None:
    _, program, inputs = program_of(name)
    data = CriterionInput(program, inputs, batch_size=7)
    criterion = Information(n_bins=8, n_entropy_images=20, n_rank_images=9)
    knowledge = criterion.compute(data)
    assert knowledge.scores is not None
    assert knowledge.widths is not None
    layers: dict[int, float] = {}
    for index, group in data.groups:
        entropies, ranks = np.zeros(group.size), np.zeros(group.size)
        views = maps_of(data, index)
        for maps in views:
            n_members, height, width = maps.shape[2:]
            for gene, member in itertools.product(range(group.size), range(n_members)):
                values = maps[:20, gene, member].flatten().tolist()
                entropies[gene] += entropy_of(values, 8) / n_members / len(views)
                of_images = [
                    np.linalg.matrix_rank(image.double().numpy(), rtol=1e-5) for image in maps[:9, gene, member]
                ]
                ranks[gene] += sum(of_images) / 9 / min(height, width) / n_members / len(views)
        for gene in range(group.size):
            total = entropies[gene] + ranks[gene]
            expected = 2 * entropies[gene] * ranks[gene] / total if total > 0 else 0.0
            assert knowledge.scores[group.start + gene] == pytest.approx(expected, abs=1e-3)
        layers[index] = 2 * entropies.mean() * ranks.mean() / (entropies.mean() + ranks.mean())
    for index, value in layers.items():
        assert knowledge.widths[index] == pytest.approx(value / max(layers.values()), abs=2e-3)


def test_a_histogram_counts_every_value_once() -> None:
    rows = torch.tensor([[[0.0, 0.1, 0.26, 0.5, 1.0]], [[2.0, 2.0, 2.0, 2.0, 2.0]]])
    counts = histogram(rows, rows.amin(dim=2), rows.amax(dim=2), 4)
    assert counts[:, 0].tolist() == [[2, 1, 1, 1], [5, 0, 0, 0]]


def test_entropy_is_1_for_even_and_0_for_single_bins() -> None:
    assert normalised_entropy(np.array([[3, 3, 3, 3], [0, 9, 0, 0], [0, 0, 0, 0]])).tolist() == [1.0, 0.0, 0.0]


def test_ranks_of_products_of_thin_matrices() -> None:
    generator = torch.Generator().manual_seed(0)
    for rank in range(5):
        left, right = (torch.randn(3, 6, rank, generator=generator) for _ in range(2))
        assert map_ranks(left @ right.transpose(1, 2)).tolist() == [rank] * 3


def test_harmonic_mean() -> None:
    assert harmonic_mean(np.array([0.0, 0.5, 1.0]), np.array([0.0, 1.0, 1.0])).tolist() == [0.0, 2 / 3, 1.0]


def test_values_are_the_difference_of_two_means() -> None:
    rng = np.random.default_rng(0)
    genomes, objectives = rng.random((25, 9)) < 0.6, rng.normal(size=25)
    genomes[:, 3] = True
    objectives[[2, 5]] = np.inf, np.nan
    found = shapley_values(genomes, objectives)
    for gene in range(9):
        kept = [-o for g, o in zip(genomes, objectives, strict=True) if g[gene] and math.isfinite(o)]
        dropped = [-o for g, o in zip(genomes, objectives, strict=True) if not g[gene] and math.isfinite(o)]
        expected = sum(kept) / len(kept) - sum(dropped) / len(dropped) if dropped else 0.0
        assert found[gene] == pytest.approx(expected)


def test_values_over_all_genomes_are_banzhaf_values_and_shapley_values_of_additive_games() -> None:
    n = 5
    genomes = np.array(list(itertools.product([False, True], repeat=n)))
    rng = np.random.default_rng(1)
    weights = rng.normal(size=n)
    assert np.allclose(shapley_values(genomes, -(genomes @ weights)), weights)
    worth = {tuple(genome): value for genome, value in zip(genomes, rng.normal(size=len(genomes)), strict=True)}
    found = shapley_values(genomes, -np.array(list(worth.values())))
    for player in range(n):
        gains = []
        for genome in worth:
            if not genome[player]:
                joined = tuple(True if i == player else bit for i, bit in enumerate(genome))
                gains.append(worth[joined] - worth[genome])
        assert found[player] == pytest.approx(sum(gains) / len(gains))


def test_nothing_evaluated_says_nothing() -> None:
    assert shapley_values(np.ones((0, 4), np.bool_), np.zeros(0)).tolist() == [0.0] * 4
    assert shapley_values(np.eye(3, dtype=np.bool_), np.full(3, np.inf)).tolist() == [0.0] * 3


def test_arrays_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(GenomeShapeError, match="one objective each"):
        shapley_values(np.ones((3, 4), np.bool_), np.zeros(2))
    with pytest.raises(OptionError, match="n_bins >= 2"):
        Information(n_bins=1)
