"""The first population: uniform widths by score, random individuals, mixtures of both, and seeds of the caller."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evoprune.search.feasibility import Repairer
from evoprune.search.guides import positions_in_groups
from evoprune.search.operators import cross_groups, flip
from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray, FloatArray, genome_digest

_N_BISECTIONS = 40
_N_ATTEMPTS = 20
_MIXED_FLIP_RATE = 0.05


@dataclass(frozen=True)
class InitialShares:
    """How the first population is composed, after the seeds of the caller; the rest is mixed.

    Attributes:
        uniform: Uniform widths by channel score, the first of them exactly, the others with growing noise.
        random: Purely random individuals, so that no score can fix the result.
    """

    uniform: float = 0.5
    random: float = 0.25

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            OptionError: A share is negative, or both exceed 1.
        """
        if not (self.uniform >= 0 and self.random >= 0 and self.uniform + self.random <= 1):
            raise OptionError(
                "the shares of uniform and random individuals must not be negative and sum to at most 1, but got "
                f"{self.uniform} and {self.random}"
            )


def initial_population(
    repairer: Repairer,
    n_individuals: int,
    *,
    rng: np.random.Generator,
    scores: FloatArray | None = None,
    seeds: BoolArray | None = None,
    shares: InitialShares | None = None,
) -> BoolArray:
    """Return ``(n, n_genes)`` distinct feasible genomes, ``n = n_individuals`` where the space holds so many.

    Args:
        repairer: Budgets and groups.
        n_individuals: How many.
        rng: Source of randomness.
        scores: ``(n_genes,)`` or ``(n_orders, n_genes)`` in [0, 1] from :func:`normalise_scores`; individuals take the
            orders in turn. Without them uniform widths keep random channels.
        seeds: ``(m, n_genes)`` genomes to begin with, in order; repaired, duplicates left out.
        shares: Composition of the rest.

    Raises:
        BudgetError: A budget cannot be reached.
    """
    shares = shares or InitialShares()
    population = DistinctGenomes(n_individuals)
    if seeds is not None and len(seeds):
        first = _in_turn(scores, len(seeds))
        population.add(repairer(seeds, rng=rng, preference=_blurred(first, np.zeros(len(seeds)), seeds.shape, rng)))
    n_rest = n_individuals - len(population)
    n_uniform, n_random = round(shares.uniform * n_rest), round(shares.random * n_rest)
    noise = np.linspace(0, 0.5, n_uniform) if n_uniform else np.empty(0)
    population.add(uniform_genomes(repairer, noise, rng=rng, scores=_in_turn(scores, n_uniform)))
    population.add(repairer.sample(n_random, rng=rng))
    for _ in range(_N_ATTEMPTS):
        n_missing = n_individuals - len(population)
        if n_missing:
            population.add(_mixed_genomes(repairer, n_missing, rng=rng, scores=_in_turn(scores, n_missing)))
    for _ in range(_N_ATTEMPTS):
        n_missing = n_individuals - len(population)
        if n_missing:
            population.add(repairer.sample(n_missing, rng=rng))
    return population.genomes()


def uniform_genomes(
    repairer: Repairer, noise: FloatArray, *, rng: np.random.Generator, scores: FloatArray | None = None
) -> BoolArray:
    """Return genomes ``(n, n_genes)`` that keep the same share of every group, as large as the budgets allow.

    No block is removed but where the smallest widths alone do not meet the budgets.

    Args:
        repairer: Budgets and groups.
        noise: ``(n,)``; 0 keeps the best scored channels at equal shares, larger values blur widths (as the sigma of a
            log-normal factor) and order alike.
        rng: Source of randomness; blurs and breaks ties.
        scores: ``(n_genes,)`` or ``(n, n_genes)`` in [0, 1], larger = kept first; random order without them.
    """
    lattice = repairer.lattice
    n, n_genes = len(noise), int(lattice.sizes.sum())
    preference = _blurred(scores, noise, (n, n_genes), rng)
    positions = positions_in_groups(preference, lattice)
    factors = np.exp(noise[:, None] * rng.normal(size=(n, len(lattice.sizes))))

    def at(share: FloatArray) -> BoolArray:
        wanted = np.floor(share[:, None] * factors * lattice.sizes).astype(np.int64)
        wanted = np.where(lattice.is_block, 1, wanted)  # a share of one gene would be none of it
        counts = lattice.floor(np.minimum(wanted, lattice.sizes))
        return positions < np.repeat(counts, lattice.sizes, axis=1)

    low, high = np.zeros(n), np.full(n, 4.0)
    for _ in range(_N_BISECTIONS if n else 0):
        middle = (low + high) / 2
        is_feasible = repairer.is_feasible(at(middle))
        low, high = np.where(is_feasible, middle, low), np.where(is_feasible, high, middle)
    return repairer(at(low), rng=rng, preference=preference)


def _mixed_genomes(
    repairer: Repairer, n_individuals: int, *, rng: np.random.Generator, scores: FloatArray | None
) -> BoolArray:
    uniform = uniform_genomes(repairer, rng.random(n_individuals), rng=rng, scores=scores)
    random = repairer.sample(n_individuals, rng=rng)
    children = cross_groups(uniform, random, rng=rng, lattice=repairer.lattice)
    children = flip(children, rates=np.full(n_individuals, _MIXED_FLIP_RATE), rng=rng)
    return repairer(children, rng=rng, preference=_blurred(scores, rng.random(n_individuals), children.shape, rng))


def _in_turn(scores: FloatArray | None, n: int) -> FloatArray | None:
    """Return ``(n, n_genes)`` orders, each in its turn; None without any."""
    if scores is None:
        return None
    orders = np.atleast_2d(scores)
    return orders[np.arange(n) % len(orders)]


def _blurred(
    scores: FloatArray | None, noise: FloatArray, shape: tuple[int, ...], rng: np.random.Generator
) -> FloatArray:
    """Return ``scores`` with normal noise of the given sigma per row, or random numbers without scores."""
    if scores is None:
        return rng.random(shape)
    return scores + noise[:, None] * rng.normal(size=shape)


class DistinctGenomes:
    """Genomes in order of arrival, each once, up to a number."""

    def __init__(self, n_wanted: int) -> None:
        self._n_wanted = n_wanted
        self._by_digest: dict[str, BoolArray] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._by_digest)

    def add(self, genomes: BoolArray) -> None:
        """Take those of ``genomes`` ``(n, n_genes)`` that are new, while there is room."""
        for genome in genomes:
            if len(self._by_digest) < self._n_wanted:
                self._by_digest.setdefault(genome_digest(genome), genome)

    def genomes(self) -> BoolArray:
        """Return them, ``(n, n_genes)``; there must be one."""
        return np.stack(list(self._by_digest.values()))
