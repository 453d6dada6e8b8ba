"""What the dense network's statistics tell a search before it starts: an order of the channels, and widths."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fitness.recipe import EvaluatorRecipe
from fitness.statistics import SEARCH_STATISTICS
from fitness.statistics_cache import cached_two_step
from fitness.two_step import TwoStep
from search_spaces import SearchSpace
from search_spaces.genome import BoolArray, FloatArray

#: Exponents of the marginal error; 1 is error per cost, larger ones care less for what a channel costs. Below 1 both
#: networks of docs/criteria.md fare worse.
_EXPONENTS = (1.0, 1.5, 2.0)
_GROUP_NOISE = 0.35


def two_step_scores(recipe: EvaluatorRecipe) -> FloatArray:
    """Return how wanted each gene is, ``(n_genes,)``, by greedy elimination on E2.

    The GA two-step method, our reading. Larger = more wanted, comparable over the whole network: the error that the
    gene's removal adds once those less wanted are gone and the others are updated. Statistics and eliminations come
    from the cache of the user where they were computed before.

    Args:
        recipe: Gives the network and the calibration images.
    """
    return two_step_of(recipe).scores()


def two_step_of(recipe: EvaluatorRecipe) -> TwoStep:
    """Return errors, marginals and orders of the network of ``recipe``, from the cache where they are known.

    Computed on the CPU, wherever candidates run: small matrices in float64.
    """
    recipe = replace(recipe, device="cpu")
    return cached_two_step(recipe.program(), recipe.calibration_inputs(), SEARCH_STATISTICS)


def width_seeds(
    space: SearchSpace,
    scores: FloatArray,
    *,
    rng: np.random.Generator,
    n: int,
    budgets: Mapping[str, float],
) -> BoolArray:
    """Return ``n`` genomes ``(n, n_genes)`` that drop the genes of least score per cost.

    The first ones weigh error against cost with different exponents; the others also vary how much each group matters.

    Args:
        space: The search space.
        scores: ``(n_genes,)`` non-negative, in any unit.
        rng: Source of the variation.
        n: Genomes wanted.
        budgets: As for :meth:`SearchSpace.repair`.
    """
    exponents = np.array([_EXPONENTS[i % len(_EXPONENTS)] for i in range(n)])
    noise = rng.normal(0.0, _GROUP_NOISE, (n, len(space.groups)))
    noise[: len(_EXPONENTS)] = 0.0
    sizes = [group.size for group in space.groups]
    relative = scores / (scores.max(initial=0.0) or 1.0)
    wanted = np.maximum(relative, 1e-12)[None] ** exponents[:, None] * np.exp(np.repeat(noise, sizes, axis=1))
    wanted[:, space.n_genes - len(space.blocks) :] = wanted.max(initial=1.0) * 1e9  # blocks stay: no error is known
    return space.repair(space.all_ones(n), rng=rng, budgets=budgets, scores=wanted)
