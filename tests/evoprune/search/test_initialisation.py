"""The first population is feasible, distinct, composed as promised, and holds the exact uniform individual."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evoprune.search import InitialShares, Repairer, initial_population, normalise_scores, uniform_genomes
from search_spaces import SearchSpace
from search_spaces.errors import BudgetError, OptionError
from search_spaces.genome import genome_digest
from search_spaces.models import build_model
from search_spaces.repair import count_kept
from tests.evoprune.fakes import tiny_space


@pytest.mark.parametrize(
    "budgets",
    [
        {"macs": 0.5},
        {"macs": 0.1, "params": None},
        {"params": 0.4},
        {"macs": 0.6, "params": 0.5, "activation-bytes": 0.7},
    ],
)
@pytest.mark.parametrize("with_scores", [True, False])
def test_individuals_are_feasible_and_distinct(budgets: dict[str, float | None], with_scores: bool) -> None:
    space = tiny_space()
    repairer = Repairer(space, budgets)
    rng = np.random.default_rng(0)
    scores = normalise_scores(rng.random(space.n_genes), repairer.lattice) if with_scores else None
    seeds = rng.random((3, space.n_genes)) < 0.7
    population = initial_population(repairer, 40, rng=rng, scores=scores, seeds=seeds)
    assert population.shape == (40, space.n_genes)
    assert len({genome_digest(genome) for genome in population}) == 40
    if budgets.get("macs"):
        assert (space.macs(population) <= budgets["macs"] * space.macs_dense).all()
    if budgets.get("params"):
        assert (space.n_params(population) <= budgets["params"] * space.n_params_dense).all()
    counts = count_kept(population, repairer.lattice)
    assert (counts >= repairer.lattice.min_keep).all()
    assert counts.std(axis=0).min() > 0.3  # diverse in every width
    np.testing.assert_array_equal(repairer(population, rng=rng), population)


def test_feasible_seeds_come_first_and_unchanged() -> None:
    space = tiny_space()
    repairer = Repairer(space, {"macs": 0.5})
    seeds = repairer.sample(4, rng=np.random.default_rng(1))
    population = initial_population(repairer, 10, rng=np.random.default_rng(2), seeds=np.concatenate([seeds, seeds]))
    np.testing.assert_array_equal(population[:4], seeds)
    assert len(population) == 10


def test_the_uniform_individual_keeps_equal_shares_of_the_best_channels() -> None:
    space = tiny_space()
    repairer = Repairer(space, {"macs": 0.5})
    rng = np.random.default_rng(0)
    scores = normalise_scores(rng.random(space.n_genes), repairer.lattice)
    genome = uniform_genomes(repairer, np.zeros(1), rng=rng, scores=scores)[0]
    for group in space.groups:
        kept, score = genome[group.start : group.stop], scores[group.start : group.stop]
        assert score[kept].min() > score[~kept].max(initial=-1)
    # No larger uniform share is feasible; what is kept beyond it only fills the slack.
    lattice = repairer.lattice
    levels = np.unique(np.concatenate([np.arange(1, group.size + 1) / group.size for group in space.groups]))
    counts = np.maximum(np.floor(levels[:, None] * lattice.sizes + 1e-9).astype(np.int64), lattice.min_keep)
    is_feasible = space.macs_cost(counts) <= 0.5 * space.macs_dense
    assert is_feasible.any()
    assert not is_feasible.all()
    assert (count_kept(genome[None], lattice)[0] >= counts[is_feasible].max(axis=0)).all()


@pytest.mark.parametrize("budget", [0.5, 0.1])
def test_uniform_individuals_shrink_widths_and_keep_their_blocks(budget: float) -> None:
    model = build_model("resnet20", model_args={"width": 0.5})
    space = SearchSpace.trace(model, torch.zeros(2, 3, 16, 16), block_genes=True)
    repairer = Repairer(space, {"macs": budget})
    rng = np.random.default_rng(0)
    genomes = uniform_genomes(repairer, np.array([0.0, 0.0, 0.3]), rng=rng, scores=rng.random(space.n_genes))
    counts = count_kept(genomes, repairer.lattice)
    is_block = repairer.lattice.is_block
    assert len(space.blocks) == is_block.sum() > 0
    assert counts[:, is_block].all()
    assert (counts / repairer.lattice.sizes)[:, ~is_block].mean(axis=1).max() < 0.8


def test_a_tiny_space_gives_what_it_has() -> None:
    space = tiny_space()
    repairer = Repairer(space, {"macs": space.macs_range[0] / space.macs_dense})
    population = initial_population(repairer, 300, rng=np.random.default_rng(0))
    n_smallest = int(np.prod([group.size for group in space.groups]))
    assert 1 <= len(population) <= n_smallest
    assert set(space.macs(population).tolist()) == {space.macs_range[0]}


@pytest.mark.parametrize("budgets", [{}, {"macs": None}, {"macs": 0.0}, {"macs": float("nan")}, {"latency": 0.5}])
def test_budgets_that_are_none_are_refused(budgets: dict[str, float | None]) -> None:
    with pytest.raises(BudgetError, match=r"in \(0, 1\] of the dense cost"):
        Repairer(tiny_space(), budgets)


def test_an_unreachable_budget_is_an_error() -> None:
    repairer = Repairer(tiny_space(), {"macs": 1e-4})
    with pytest.raises(BudgetError, match="reachable range"):
        initial_population(repairer, 4, rng=np.random.default_rng(0))


@pytest.mark.parametrize(("uniform", "random"), [(-0.1, 0.5), (0.7, 0.7), (float("nan"), 0.1)])
def test_shares_that_do_not_fit_are_refused(uniform: float, random: float) -> None:
    with pytest.raises(OptionError, match="sum to at most 1"):
        InitialShares(uniform, random)
