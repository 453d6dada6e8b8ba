"""Variation and selection on whole arrays of genomes, with an explicit generator.

DEAP's own operators work on one list at a time, draw from the global ``random`` and corrupt arrays; these are
registered on a DEAP ``Toolbox`` in their place (:func:`build_toolbox`). None of them looks at the budget: repair does.

Mutations take ``genomes`` ``(n, n_genes)``, ``rates`` ``(n,)``, the share of genes that is to change, and the ``guide``
that these offspring follow, and return new genomes. Crossovers take two arrays of parents and return one child per row.
Replace or add an operator by registering it under ``mutate_<name>`` or ``mate_<name>``.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from deap import base

from evoprune.search.guides import UNGUIDED, Guide, nearest_kept, positions_in_groups
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.repair import Lattice, count_kept

_MAX_SWAPS = 64
_WIDTH_SIGMA = 0.2
_N_REVIVED = 4  # dropped genes per group whose exchanges are compared in a local search
#: Mutations that leave all widths as they are, and so change nothing while widths alone evolve.
WIDTH_KEEPING = ("swap", "local")


class LocalError(Protocol):
    """An error, smaller = better, whose change is known exactly without an evaluation; such as the two-step E1."""

    def flip_marginals(self, genome: BoolArray) -> FloatArray:
        """Return by how much the error rises when each gene alone is flipped, ``(n_genes,)``."""

    def swap_marginals(self, genome: BoolArray, dropped: int) -> FloatArray:
        """Return by how much it rises when ``dropped`` is revived and each kept gene goes for it, ``(n_genes,)``."""


def flip(genomes: BoolArray, *, rates: FloatArray, rng: np.random.Generator, guide: Guide = UNGUIDED) -> BoolArray:
    """Return ``genomes`` with independent bit flips, as many expected drops as revivals.

    Args:
        genomes: ``(n, n_genes)``.
        rates: ``(n,)`` expected share of genes that flip, half of them 1 -> 0 and half 0 -> 1, whatever the share kept.
        rng: Source of randomness.
        guide: Relative probabilities of 1 -> 0 and of 0 -> 1.
    """
    n_genes = genomes.shape[1]
    wanted = rates[:, None] * n_genes / 2
    probability = np.zeros(genomes.shape)
    for is_open, weights in ((genomes, guide.p_drop), (~genomes, guide.p_revive)):
        share = is_open * (np.ones(n_genes) if weights is None else weights)
        total = share.sum(axis=1, keepdims=True)
        probability += share * np.divide(wanted, total, out=np.zeros_like(total), where=total > 0)
    return genomes ^ (rng.random(genomes.shape) < probability)


def uniform_flip(genomes: BoolArray, *, rates: FloatArray, rng: np.random.Generator, guide: Guide) -> BoolArray:
    """Return :func:`flip` of ``genomes`` whatever the ``guide`` says."""
    del guide
    return flip(genomes, rates=rates, rng=rng)


def bit_flip(genomes: BoolArray, *, rates: FloatArray, rng: np.random.Generator, guide: Guide = UNGUIDED) -> BoolArray:
    """Return ``genomes`` with every gene flipped independently at the rate ``1 / n_genes``.

    Args:
        genomes: ``(n, n_genes)``.
        rates: Not used: the rate is the classic one.
        rng: Source of randomness.
        guide: Not used.

    References:
        Muehlenbein 1992, How genetic algorithms really work: mutation and hillclimbing, Sec. 2.
    """
    del rates, guide
    return genomes ^ (rng.random(genomes.shape) < 1 / max(genomes.shape[1], 1))


def swap(
    genomes: BoolArray,
    *,
    rates: FloatArray,
    rng: np.random.Generator,
    lattice: Lattice,
    guide: Guide = UNGUIDED,
) -> BoolArray:
    """Return ``genomes`` with kept and dropped genes exchanged inside groups: counts, and so costs, stay.

    Each genome gets at least one exchange and ``rates * n_genes / 2`` in expectation, at most 64. Genomes whose groups
    are all full or empty come back unchanged. Where the guide knows which genes are alike, alike ones are exchanged:
    members of a class, or the channels of a similar pair. Arguments as in :func:`flip`.
    """
    genomes = genomes.copy()
    n_genes = genomes.shape[1]
    group_of_gene = np.repeat(np.arange(len(lattice.sizes)), lattice.sizes)
    n_swaps = np.clip(rng.poisson(rates * n_genes / 2), 1, _MAX_SWAPS)
    weights_drop = np.ones(n_genes) if guide.p_drop is None else guide.p_drop
    weights_revive = np.ones(n_genes) if guide.p_revive is None else guide.p_revive
    for step in range(int(n_swaps.max(initial=0))):
        rows = np.flatnonzero(n_swaps > step)
        part = genomes[rows]
        has_dropped = (count_kept(part, lattice) < lattice.sizes)[:, group_of_gene]
        dropped = _pick(part & has_dropped, weights_drop, rng)
        same_group = group_of_gene == group_of_gene[dropped][:, None]
        revived = _pick(~part & same_group, weights_revive * _alike(dropped, guide, lattice, n_genes), rng)
        is_possible = (dropped >= 0) & (revived >= 0)
        genomes[rows[is_possible], dropped[is_possible]] = False
        genomes[rows[is_possible], revived[is_possible]] = True
    return genomes


def drop_doubles(
    genomes: BoolArray,
    *,
    rates: FloatArray,
    rng: np.random.Generator,
    lattice: Lattice,
    guide: Guide = UNGUIDED,
) -> BoolArray:
    """Return ``genomes`` without some genes that a kept sibling can stand in for; repair fills what becomes free.

    Each genome loses at least one gene and ``rates * n_genes / 2`` in expectation, drawn by closeness to the nearest
    kept sibling times the guide's ``p_drop``; of two genes that are each other's nearest one stays. A guide without
    pairs or classes lets ``p_drop`` decide alone. Arguments as in :func:`flip`.

    References:
        QSFM (arXiv 2105.06052): of a similar pair one goes. The draw is ours.
    """
    n_genes = genomes.shape[1]
    weights, sibling = nearest_kept(genomes, guide, lattice)
    if guide.p_drop is not None:
        weights = weights * guide.p_drop
    n_drops = np.clip(rng.poisson(rates * n_genes / 2), 1, n_genes)
    keys = np.full(genomes.shape, np.inf)
    np.divide(rng.exponential(size=genomes.shape), weights, out=keys, where=genomes & (weights > 0))
    rank = np.argsort(np.argsort(keys, axis=1, kind="stable"), axis=1, kind="stable")
    is_drawn = (rank < n_drops[:, None]) & np.isfinite(keys)
    rows = np.arange(len(genomes))[:, None]
    is_paired = (sibling >= 0) & is_drawn[rows, sibling] & (sibling[rows, sibling] == np.arange(n_genes))
    return genomes & ~(is_drawn & ~(is_paired & (rank > rank[rows, sibling])))


def resize(
    genomes: BoolArray,
    *,
    rates: FloatArray,
    rng: np.random.Generator,
    lattice: Lattice,
    guide: Guide = UNGUIDED,
) -> BoolArray:
    """Return ``genomes`` with one or more groups grown or shrunk by an order of their channels.

    Each genome gets one group and a further ``rates * n_groups`` in expectation; the kept count is multiplied by a
    log-normal factor (sigma 0.2) and changes by one step at least. Growing revives the best scored dropped genes,
    shrinking drops the worst scored kept ones; scores are blurred, so that the order is a preference and not a law.

    Args:
        genomes: ``(n, n_genes)``.
        rates: ``(n,)``.
        rng: Source of randomness.
        lattice: Allowed counts.
        guide: Its order; without one the order is random.
    """
    n, n_groups = len(genomes), len(lattice.sizes)
    counts = count_kept(genomes, lattice)
    is_changed = rng.random((n, n_groups)) < rates[:, None]
    is_changed[np.arange(n), rng.integers(n_groups, size=n)] = True
    factor = np.exp(rng.normal(0, _WIDTH_SIGMA, (n, n_groups)))
    scaled = lattice.floor(np.rint(counts * factor).astype(np.int64))
    grown = np.maximum(scaled, lattice.above(counts))
    shrunk = np.minimum(scaled, lattice.floor(counts - 1))
    counts = np.where(is_changed, np.where(factor > 1, grown, shrunk), counts)
    preference = rng.random(genomes.shape)
    if guide.order is not None:
        preference = guide.order + preference * rng.random((n, 1))
    return with_counts(genomes, np.maximum(counts, lattice.min_keep), preference, lattice)


def toggle_blocks(
    genomes: BoolArray,
    *,
    rates: FloatArray,
    rng: np.random.Generator,
    lattice: Lattice,
    guide: Guide = UNGUIDED,
) -> BoolArray:
    """Return ``genomes`` with residual blocks removed or brought back; unchanged where there are none to remove.

    Each genome gets one block and a further ``rates * n_blocks`` in expectation. A block that comes back keeps the
    share of channels in each of its groups that the genome keeps elsewhere.

    Args:
        genomes: ``(n, n_genes)``.
        rates: ``(n,)``.
        rng: Source of randomness.
        lattice: Groups, with those that belong to a block.
        guide: Its order says which channels a block that comes back keeps; at random without one.
    """
    blocks = np.flatnonzero(lattice.is_block)
    if not len(blocks):
        return genomes.copy()
    n = len(genomes)
    is_toggled = rng.random((n, len(blocks))) < rates[:, None]
    is_toggled[np.arange(n), rng.integers(len(blocks), size=n)] = True
    counts = count_kept(genomes, lattice)
    was_kept = counts[:, blocks] > 0
    counts[:, blocks] = was_kept ^ is_toggled
    is_inner = lattice.owner >= 0
    before, after = np.ones(counts.shape, np.bool_), np.ones(counts.shape, np.bool_)
    before[:, is_inner] = genomes[:, lattice.starts[lattice.owner[is_inner]]]
    after[:, is_inner] = counts[:, lattice.owner[is_inner]] > 0
    is_present = before & ~lattice.is_block
    n_present = (is_present * lattice.sizes).sum(axis=1, keepdims=True)
    share = (is_present * counts).sum(axis=1, keepdims=True) / np.maximum(n_present, 1)
    returning = lattice.floor(np.rint(share * lattice.sizes).astype(np.int64))
    counts = lattice.canonical(np.where(after & ~before, returning, counts))
    preference = rng.random(genomes.shape)
    if guide.order is not None:
        preference = guide.order + preference * rng.random((n, 1))
    return with_counts(genomes, counts, preference, lattice)


def local_search(
    genomes: BoolArray,
    *,
    rates: FloatArray,
    rng: np.random.Generator,
    lattice: Lattice,
    error: LocalError,
    guide: Guide = UNGUIDED,
) -> BoolArray:
    """Return ``genomes`` after exchanges inside groups, each of which lowers ``error``: widths, and so costs, stay.

    Groups are visited in random order. In each, the four dropped genes whose revival promises most are compared with
    every kept one by the exact change of ``error``, and the best exchange is made where it is a gain.

    Args:
        genomes: ``(n, n_genes)``.
        rates: ``(n,)``: each genome gets at most ``max(1, rates * n_genes / 2)`` exchanges, and none once no group
            offers a gain.
        rng: Order of the groups.
        lattice: Groups.
        error: What is lowered.
        guide: Not used: the error decides.
    """
    del guide
    genomes = genomes.copy()
    n_exchanges = np.clip(np.rint(rates * genomes.shape[1] / 2), 1, _MAX_SWAPS).astype(np.int64)
    for genome, n_left in zip(genomes, n_exchanges.tolist(), strict=True):
        n_since_gain, groups = 0, rng.permutation(np.flatnonzero(~lattice.is_block))
        for turn in range(n_left * max(len(groups), 1)):
            if n_left == 0 or n_since_gain >= len(groups):
                break
            group = groups[turn % len(groups)]
            start = int(lattice.starts[group])
            exchange = _best_exchange(genome, start, start + int(lattice.sizes[group]), error)
            n_since_gain += 1
            if exchange is not None:
                revived, dropped = exchange
                genome[revived], genome[dropped] = True, False
                n_left, n_since_gain = n_left - 1, 0
    return genomes


def _best_exchange(genome: BoolArray, start: int, stop: int, error: LocalError) -> tuple[int, int] | None:
    """Return the genes to revive and to drop between ``start`` and ``stop``; None where no exchange is a gain."""
    gone = start + np.flatnonzero(~genome[start:stop])
    if not len(gone) or len(gone) == stop - start:
        return None
    flips = error.flip_marginals(genome)
    best, found = -1e-12 * (1.0 + float(np.abs(flips).max())), None
    for revived in gone[np.argsort(flips[gone], kind="stable")][:_N_REVIVED].tolist():
        change = np.where(genome[start:stop], error.swap_marginals(genome, revived)[start:stop], np.inf)
        place = int(change.argmin())
        if change[place] < best:
            best, found = float(change[place]), (revived, start + place)
    return found


def cross_uniform(first: BoolArray, second: BoolArray, *, rng: np.random.Generator) -> BoolArray:
    """Return children ``(n, n_genes)`` that take every gene from either parent with equal probability."""
    return np.where(rng.random(first.shape) < 0.5, first, second)


def cross_groups(first: BoolArray, second: BoolArray, *, rng: np.random.Generator, lattice: Lattice) -> BoolArray:
    """Return children ``(n, n_genes)`` that take every group whole from either parent with equal probability."""
    from_first = rng.random((len(first), len(lattice.sizes))) < 0.5
    return np.where(np.repeat(from_first, lattice.sizes, axis=1), first, second)


def cross_two_point(first: BoolArray, second: BoolArray, *, rng: np.random.Generator, lattice: Lattice) -> BoolArray:
    """Return children ``(n, n_genes)``: the first parent, with a run of whole groups from the second."""
    n_groups = len(lattice.sizes)
    cuts = np.sort(rng.integers(0, n_groups + 1, (len(first), 2)), axis=1)
    group = np.arange(n_groups)
    from_second = (group >= cuts[:, :1]) & (group < cuts[:, 1:])
    return np.where(np.repeat(from_second, lattice.sizes, axis=1), second, first)


def binary_tournament(ranks: IntArray, n_selected: int, *, rng: np.random.Generator) -> IntArray:
    """Return ``(n_selected,)`` indices, each the better of two different individuals drawn at random.

    Args:
        ranks: ``(n,)`` with 0 = best; of equal ranks the first drawn wins.
        n_selected: How many to draw, with replacement.
        rng: Source of randomness.
    """
    n = len(ranks)
    first = rng.integers(n, size=n_selected)
    second = (first + rng.integers(1, max(n, 2), size=n_selected)) % n
    return np.where(ranks[second] < ranks[first], second, first)


def truncate(objective_values: FloatArray, n_survivors: int) -> IntArray:
    """Return the indices of the ``n_survivors`` smallest objectives, best first.

    Args:
        objective_values: ``(n, n_objectives)``, minimised in lexicographic order; ties keep input order.
        n_survivors: At most so many are returned; failed individuals (``inf`` in the first objective) only where there
            is no other.
    """
    order = np.lexsort(objective_values.T[::-1])
    finite = order[np.isfinite(objective_values[order, 0])]
    return (finite if len(finite) else order)[:n_survivors].astype(np.int64)


def build_toolbox(lattice: Lattice, local_error: LocalError | None = None) -> base.Toolbox:
    """Return a DEAP toolbox with the operators of a search in a space with the groups of ``lattice``.

    Without a ``local_error`` there is no ``mutate_local``.
    """
    toolbox = base.Toolbox()
    toolbox.register("mutate_flip", flip)
    toolbox.register("mutate_uniform_flip", uniform_flip)
    toolbox.register("mutate_bit_flip", bit_flip)
    toolbox.register("mutate_block", toggle_blocks, lattice=lattice)
    if local_error is not None:
        toolbox.register("mutate_local", local_search, lattice=lattice, error=local_error)
    toolbox.register("mutate_swap", swap, lattice=lattice)
    toolbox.register("mutate_drop", drop_doubles, lattice=lattice)
    toolbox.register("mutate_width", resize, lattice=lattice)
    toolbox.register("mate_uniform", cross_uniform)
    toolbox.register("mate_groups", cross_groups, lattice=lattice)
    toolbox.register("mate_two_point", cross_two_point, lattice=lattice)
    toolbox.register("select", binary_tournament)
    toolbox.register("survive", truncate)
    return toolbox


def with_counts(genomes: BoolArray, counts: IntArray, preference: FloatArray, lattice: Lattice) -> BoolArray:
    """Return ``genomes`` changed as little as possible to keep ``counts`` ``(n, n_groups)`` genes per group.

    Args:
        genomes: ``(n, n_genes)``.
        counts: Wanted counts.
        preference: ``(n, n_genes)``, finite: most preferred genes are revived first and dropped last.
        lattice: Groups.
    """
    spread = preference.max(initial=0.0) - preference.min(initial=0.0) + 1.0
    positions = positions_in_groups(preference + spread * genomes, lattice)
    return positions < np.repeat(counts, lattice.sizes, axis=1)


def as_widths(genomes: BoolArray, order: FloatArray, lattice: Lattice) -> BoolArray:
    """Return genomes ``(n, n_genes)`` that keep as many genes of every group, and the first ones of ``order``.

    Costs depend on the widths alone, so budgets that held go on to hold.

    Args:
        genomes: ``(n, n_genes)``.
        order: ``(n_genes,)``, larger = kept first; ties go to the lower index.
        lattice: Groups.
    """
    preference = np.broadcast_to(order, genomes.shape)
    return with_counts(np.zeros_like(genomes), count_kept(genomes, lattice), preference, lattice)


def _alike(genes: IntArray, guide: Guide, lattice: Lattice, n_genes: int) -> FloatArray:
    """Return, per row, how well each gene stands in for ``genes`` ``(n,)``; 1 where the guide does not know."""
    weights = np.ones((len(genes), n_genes))
    if guide.closeness:
        groups = np.searchsorted(lattice.starts, genes, side="right") - 1
        for row, (gene, group) in enumerate(zip(genes, groups, strict=True)):
            if gene >= 0 and group in guide.closeness:
                start = lattice.starts[group]
                weights[row, start : start + lattice.sizes[group]] = guide.closeness[group][gene - start]
    return weights


def _pick(is_open: BoolArray, weights: FloatArray, rng: np.random.Generator) -> IntArray:
    """Return, per row, one open column drawn in proportion to ``weights``, positive where open; -1 where none is."""
    keys = np.full(is_open.shape, np.inf)
    np.divide(rng.exponential(size=is_open.shape), weights, out=keys, where=is_open)
    picked = keys.argmin(axis=1)
    return np.where(is_open.any(axis=1), picked, -1)
