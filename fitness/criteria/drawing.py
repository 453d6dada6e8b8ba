"""From what a criterion knows to feasible genomes: widths first, then which channels, then repair."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from fitness.criteria.contract import ROLES, ChannelKnowledge
from fitness.criteria.removal import removal_order
from fitness.seeding import width_seeds
from search_spaces import SearchSpace
from search_spaces.errors import GenomeShapeError, OptionError
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.repair import Lattice, Limit

_N_BISECTIONS = 40
#: Sigma of the logarithm by which widths deviate from the equal share, growing from the first draw to the last.
_WIDTH_NOISE = 0.4
_SCORE_NOISE = 0.25
#: Of pair similarities, as a share of their spread inside the group.
_PAIR_TEMPERATURE = 0.1
#: Share of a class that one pass removes beyond the rate of its group (EXP, step 6).
_CLASS_SLACK = 0.1
#: Lack of the genes of residual blocks, beyond that of any channel.
_BLOCKS_LAST = 10.0


def draw_seeds(
    knowledge: ChannelKnowledge,
    space: SearchSpace,
    *,
    rng: np.random.Generator,
    n: int,
    budgets: Mapping[str, float] | None = None,
) -> BoolArray:
    """Return ``n`` feasible genomes ``(n, n_genes)`` that follow ``knowledge``; blocks stay where the budget allows.

    Draws are dealt out evenly to the roles on offer. The first draw of a role is its rule without noise at equal widths
    (or the widths that the criterion asks for); later ones vary widths and choice more and more. Duplicates may occur.

    * ``scores``: the best scored of each group; those comparable over the network choose the widths as well, for every
      other draw: between them come equal widths, and widths half-way to them, in turn.
    * ``similarity``: one of the most alike pair goes, then of the next, down to the width.
    * ``classes``: random removal inside a class, the most populous classes first, so every draw is another individual.
    * ``family``: the masks whose cost is nearest to the budget.
    * ``widths``: the asked-for widths; random channels where no other role says which.

    Args:
        knowledge: Of this space.
        space: The search space.
        rng: Source of the variation.
        n: Genomes wanted.
        budgets: As for :meth:`SearchSpace.repair`. Without any budget, widths are drawn from [0.1, 1].

    Raises:
        GenomeShapeError: ``knowledge`` is of another space.
        OptionError: ``n`` is negative.
        BudgetError: A budget is malformed or unreachable.
    """
    if knowledge.sizes != tuple(group.size for group in space.groups):
        raise GenomeShapeError(
            f"knowledge of {len(knowledge.sizes)} groups with {knowledge.n_genes} genes does not fit this search space "
            f"of {len(space.groups)} groups with {space.n_genes}; compute it for this space"
        )
    if n < 0:
        raise OptionError(f"`n >= 0` must hold, but got {n}")
    roles = [role for role in ROLES if role in knowledge.roles]
    if len(roles) > 1 and "widths" in roles:
        roles.remove("widths")  # they shape the draws of the other roles
    genomes = space.all_ones(n)
    for index, role in enumerate(roles):
        rows = np.arange(index, n, len(roles))
        if len(rows):
            genomes[rows] = _DRAWERS[role](knowledge, space, rng, len(rows), budgets or {})
    return genomes


Budgets = Mapping[str, float]


def _by_scores(
    knowledge: ChannelKnowledge, space: SearchSpace, rng: np.random.Generator, n: int, budgets: Budgets
) -> BoolArray:
    assert knowledge.scores is not None
    if not (knowledge.is_global and knowledge.widths is None and budgets):
        return _best_scored(knowledge, space, rng, n, budgets, knowledge.widths)
    scores = knowledge.scores - knowledge.scores.min(initial=0.0)
    own = width_seeds(space, scores, rng=rng, n=(n + 1) // 2, budgets=budgets)
    shares = space.kept_counts(own[:1])[0] / space.lattice.sizes if n else None
    genomes = space.all_ones(n)
    genomes[::2] = own
    for first, widths in ((1, None), (3, None if shares is None else np.sqrt(shares))):
        n_drawn = len(range(first, n, 4))
        if n_drawn:
            genomes[first::4] = _best_scored(knowledge, space, rng, n_drawn, budgets, widths)
    return genomes


def _best_scored(
    knowledge: ChannelKnowledge,
    space: SearchSpace,
    rng: np.random.Generator,
    n: int,
    budgets: Budgets,
    widths: FloatArray | None,
) -> BoolArray:
    """Return genomes that keep the best scored of each group, in proportion to ``widths``, with growing noise."""
    assert knowledge.scores is not None
    ranks = ranked_within_groups(knowledge.scores, knowledge)
    noise = np.linspace(0.0, _SCORE_NOISE, n)[:, None] * rng.normal(size=(n, space.n_genes))
    return _at_widths(widths, space, rng, budgets, n, lambda _: ranks + noise)


def _by_similarity(
    knowledge: ChannelKnowledge, space: SearchSpace, rng: np.random.Generator, n: int, budgets: Budgets
) -> BoolArray:
    preference = rng.random((n, space.n_genes))
    for index, matrix in knowledge.similarity.items():
        start, size = int(knowledge.starts[index]), knowledge.sizes[index]
        genes = slice(start, start + size)
        strength = None if knowledge.strength is None else knowledge.strength[genes]
        upper = matrix[np.triu_indices(size, 1)]
        spread = float(upper.std()) if len(upper) else 0.0
        for row in range(n):
            noisy = matrix
            if row:
                gumbel = np.triu(rng.gumbel(size=matrix.shape), 1)
                noisy = matrix + _PAIR_TEMPERATURE * spread * (gumbel + gumbel.T)
            order = removal_order(noisy, strength)
            preference[row, start + order] = np.arange(size) / size
    return _at_widths(knowledge.widths, space, rng, budgets, n, lambda _: preference)


def _by_classes(
    knowledge: ChannelKnowledge, space: SearchSpace, rng: np.random.Generator, n: int, budgets: Budgets
) -> BoolArray:
    classes = knowledge.classes
    assert classes is not None

    def choose(counts: IntArray) -> FloatArray:
        preference = np.empty((n, space.n_genes))
        for index, size in enumerate(knowledge.sizes):
            start = int(knowledge.starts[index])
            for row in range(n):
                rate = 1 - counts[row, index] / size
                order = class_removal_order(classes[start : start + size], rate, rng=rng)
                preference[row, start + order] = np.arange(size) / size
        return preference

    return _at_widths(knowledge.widths, space, rng, budgets, n, choose)


def _by_family(
    knowledge: ChannelKnowledge, space: SearchSpace, rng: np.random.Generator, n: int, budgets: Budgets
) -> BoolArray:
    family = knowledge.family
    assert family is not None
    misfit = np.zeros(len(family.dials))
    filled = space.repair(family.masks, rng=rng)  # groups that a mask leaves empty count as what they must keep
    for limit in space.limits(budgets):
        misfit += np.abs(np.log(np.maximum(limit.cost(space.kept_counts(filled)), 1) / max(limit.at_most, 1)))
    nearest = np.argsort(misfit, kind="stable") if budgets else rng.permutation(len(family.dials))
    chosen = family.masks[nearest[np.arange(n) % len(nearest)]]
    return space.repair(chosen, rng=rng, scores=_for_repair(knowledge, space, n), budgets=budgets)


def _by_widths(
    knowledge: ChannelKnowledge, space: SearchSpace, rng: np.random.Generator, n: int, budgets: Budgets
) -> BoolArray:
    return _at_widths(knowledge.widths, space, rng, budgets, n, lambda _: rng.random((n, space.n_genes)))


_DRAWERS: Mapping[str, Callable[[ChannelKnowledge, SearchSpace, np.random.Generator, int, Budgets], BoolArray]] = {
    "scores": _by_scores,
    "similarity": _by_similarity,
    "classes": _by_classes,
    "family": _by_family,
    "widths": _by_widths,
}


def ranked_within_groups(scores: FloatArray, knowledge: ChannelKnowledge) -> FloatArray:
    """Return ``(n_genes,)`` mid-ranks of ``scores`` inside each group, scaled to (0, 1), larger = more wanted.

    Equal scores get equal ranks; a group of one gets 0.5.
    """
    ranks = np.empty(len(scores))
    for start, size in zip(knowledge.starts, knowledge.sizes, strict=True):
        part = scores[start : start + size]
        below = np.searchsorted(np.sort(part), part, side="left")
        upto = np.searchsorted(np.sort(part), part, side="right")
        ranks[start : start + size] = (below + upto) / 2 / size
    return ranks


def class_removal_order(classes: IntArray, rate: float, *, rng: np.random.Generator) -> IntArray:
    """Return the members of a group ``(g,)`` in a random order of removal that thins large classes first.

    As EXP does it with its slices: classes are visited by population, largest first, and each gives up all but
    ``ceil(n (1 - rate - 0.1))`` random members, one at least staying. Should more have to go, the rest follows,
    chosen at random, every class's last member after all others.

    Args:
        classes: ``(g,)`` class of each member.
        rate: Share of the group that is to go, in [0, 1].
        rng: Chooses inside classes and between classes of equal size.

    References:
        EXP, PeerJ CS 9:e1564 (2023), "random removal"; on whole channels instead of kernel slices, ours.
    """
    names, populations = np.unique(classes, return_counts=True)
    visits = np.lexsort((rng.random(len(names)), -populations))
    first: list[IntArray] = []
    rest: list[IntArray] = []
    last: list[IntArray] = []
    for visit in visits:
        members = rng.permutation(np.flatnonzero(classes == names[visit]))
        n_kept = max(1, int(np.ceil(len(members) * (1 - rate - _CLASS_SLACK))))
        last.append(members[:1])
        rest.append(members[1:n_kept])
        first.append(members[n_kept:])
    return np.concatenate([*first, rng.permutation(np.concatenate(rest)), rng.permutation(np.concatenate(last))])


def _at_widths(
    widths: FloatArray | None,
    space: SearchSpace,
    rng: np.random.Generator,
    budgets: Budgets,
    n: int,
    choose: Callable[[IntArray], FloatArray],
) -> BoolArray:
    """Return genomes of drawn widths; ``choose`` turns kept counts ``(n, n_groups)`` into preferences per gene.

    Widths are in proportion to ``widths`` ``(n_groups,)``, equal shares without.
    """
    lattice = space.lattice
    sigma = np.linspace(0.0, _WIDTH_NOISE, n)[:, None] if n > 1 else np.zeros((n, 1))
    factors = np.exp(sigma * rng.normal(size=(n, len(lattice.sizes))))
    if widths is not None:
        factors = factors * widths
    limits = space.limits(budgets)
    wanted = _wanted_counts(space, factors, limits, rng)
    counts = _allowed(wanted, lattice)
    preference = choose(counts)
    genomes = np.zeros((n, space.n_genes), np.bool_)
    position = np.empty((n, space.n_genes))
    rows = np.arange(n)[:, None]
    for index, (start, size) in enumerate(zip(lattice.starts, lattice.sizes, strict=True)):
        order = np.argsort(-preference[:, start : start + size], axis=1, kind="stable") + start
        genomes[rows, order] = np.arange(size) < counts[:, index : index + 1]
        position[rows, order] = np.arange(size)
    # Repair takes scores per cost: so priced, it first fills the groups that lie furthest below what they should keep.
    lack = (np.repeat(wanted, lattice.sizes, axis=1) - position) / np.repeat(lattice.sizes, lattice.sizes)
    lack[:, space.n_genes - len(space.blocks) :] = _BLOCKS_LAST
    return space.repair(genomes, rng=rng, scores=lack * _prices(lattice, limits), budgets=budgets)


def _prices(lattice: Lattice, limits: tuple[Limit, ...]) -> FloatArray:
    """Return the share of the limits that each gene takes, ``(n_genes,)``; ones without limits."""
    if not limits:
        return np.ones(int(lattice.sizes.sum()))
    prices = np.zeros(len(lattice.sizes))
    for limit in limits:
        prices += limit.cost.gene_prices(lattice.sizes, lattice.min_keep, lattice.step) / max(limit.at_most, 1)
    return np.repeat(np.maximum(prices, 1e-30), lattice.sizes)


def _allowed(wanted: FloatArray, lattice: Lattice) -> IntArray:
    """Return the largest allowed counts that are at most ``wanted``, or the smallest allowed ones."""
    return lattice.floor(np.floor(wanted + 1e-9).astype(np.int64))


def _wanted_counts(
    space: SearchSpace, factors: FloatArray, limits: tuple[Limit, ...], rng: np.random.Generator
) -> FloatArray:
    """Return how many genes each group should keep, ``(n, n_groups)``, in proportion to ``factors``; blocks stay.

    As many as the limits allow; a random share of them in [0.1, 1] without limits.
    """
    lattice = space.lattice

    def at(share: FloatArray) -> FloatArray:
        shares = np.minimum(share[:, None] * factors, 1.0)
        return np.where(lattice.is_block, 1.0, shares) * lattice.sizes

    if not limits:
        return at(rng.uniform(0.1, 1.0, len(factors)) / factors.max(axis=1, initial=1e-12))
    low, high = np.zeros(len(factors)), 1.0 / factors.min(axis=1, initial=1.0)
    for _ in range(_N_BISECTIONS):
        middle = (low + high) / 2
        counts = _allowed(at(middle), lattice)
        fits = np.all([limit.cost(counts) <= limit.at_most for limit in limits], axis=0)
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return at(low)


def _for_repair(knowledge: ChannelKnowledge, space: SearchSpace, n: int) -> FloatArray | None:
    """Return what repair orders by: scores, else the strength, else nothing."""
    scores = knowledge.scores if knowledge.scores is not None else knowledge.strength
    if scores is None:
        return None
    ranks = ranked_within_groups(scores, knowledge) if not knowledge.is_global else scores
    wanted = np.repeat(ranks[None], n, axis=0)
    wanted[:, space.n_genes - len(space.blocks) :] = wanted.max(initial=0.0) + 1.0
    return wanted
