"""Repair: the nearest feasible genome, for a whole population at once.

Within a group only the *order* of the genes matters, and across groups only how many are kept. So each group is sorted
once (kept genes first, then by priority), one threshold per individual is found by bisection such that the budget
holds, and the slack that is left is filled gene by gene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search_spaces.cost import Cost
from search_spaces.errors import BudgetError, GenomeShapeError
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.groups import ChannelGroup

_BISECTIONS = 30
#: Share of residual blocks that a random genome keeps: removing one is a far larger step than removing a channel.
_BLOCK_KEEP_RATIO = 0.9


@dataclass(frozen=True)
class Limit:
    """A cost that must stay at or below ``at_most``."""

    cost: Cost
    at_most: int


@dataclass(frozen=True)
class Lattice:
    """The kept counts that each group may take, as ``(n_groups,)`` arrays.

    Attributes:
        starts: First gene of each group.
        sizes: Genes of each group.
        min_keep: Fewest genes that stay.
        step: Kept counts are multiples of it, or the size.
        is_block: The group's one gene removes a residual block.
        owner: The block group whose removal takes this group along, or -1.
    """

    starts: IntArray
    sizes: IntArray
    min_keep: IntArray
    step: IntArray
    is_block: BoolArray
    owner: IntArray

    @classmethod
    def of(cls, groups: Sequence[ChannelGroup], owner: IntArray | None = None) -> Lattice:
        """Return the lattice of ``groups``; ``owner`` is the block group in which each one lives, or -1."""

        def column(name: str) -> IntArray:
            return np.array([getattr(group, name) for group in groups], np.int64)

        is_block = np.array([group.kind == "block" for group in groups], np.bool_)
        owner = np.full(len(groups), -1, np.int64) if owner is None else owner
        return cls(column("start"), column("size"), column("min_keep"), column("step"), is_block, owner)

    def canonical(self, counts: IntArray) -> IntArray:
        """Return ``counts`` with every group inside a removed block kept whole: one genome per network."""
        if not self.is_block.any():
            return counts
        is_gone = (self.owner >= 0) & (counts[:, np.maximum(self.owner, 0)] == 0)
        return np.where(is_gone, self.sizes, counts)

    def floor(self, counts: IntArray) -> IntArray:
        """Return the largest allowed counts that are at most ``counts``, or the smallest allowed ones."""
        rounded = np.where(counts >= self.sizes, self.sizes, counts // self.step * self.step)
        return np.maximum(rounded, self.min_keep)

    def above(self, counts: IntArray) -> IntArray:
        """Return the next larger allowed counts; ``sizes`` where there is none."""
        return np.minimum(counts // self.step * self.step + self.step, self.sizes)


def count_kept(genomes: BoolArray, lattice: Lattice) -> IntArray:
    """Return how many genes of each group are kept, ``(n, n_groups)``."""
    if not len(lattice.starts):
        return np.zeros((len(genomes), 0), np.int64)
    narrow = np.uint16 if lattice.sizes.max() < 2**16 else np.int64  # sums in narrow integers are four times as fast
    return np.add.reduceat(genomes.view(np.uint8), lattice.starts, axis=1, dtype=narrow).astype(np.int64)


def draw_genomes(lattice: Lattice, n: int, *, rng: np.random.Generator) -> BoolArray:
    """Return ``n`` random genomes ``(n, n_genes)``, diverse in their widths, that need not be valid.

    Every individual draws a keep ratio and every group deviates from it.
    """
    base = rng.uniform(0.1, 1.0, (n, 1))
    ratio = np.clip(base + rng.normal(0.0, 0.2, (n, len(lattice.sizes))), 0.02, 1.0)
    ratio[:, lattice.is_block] = _BLOCK_KEEP_RATIO
    wanted = np.repeat(ratio, lattice.sizes, axis=1) if len(lattice.sizes) else np.zeros((n, 0))
    return np.asarray(rng.random(wanted.shape, dtype=np.float32) < wanted)


def check_reachable(lattice: Lattice, limits: Sequence[Limit]) -> None:
    """Raise unless the smallest genome meets every limit.

    Raises:
        BudgetError: A limit lies under the reachable minimum; the message names the reachable range.
    """
    for limit in limits:
        least = int(limit.cost(lattice.min_keep[None])[0])
        most = int(limit.cost(lattice.sizes[None])[0])
        if limit.at_most < least:
            raise BudgetError(
                f"the {limit.cost.unit} budget must lie within the reachable range [{least:,}, {most:,}] "
                f"({least / most:.4f} to 1 of the dense network), but got {limit.at_most:,} "
                f"({limit.at_most / most:.4f}); raise the budget, lower min_channels or protect fewer layers"
            )


def repair(
    genomes: BoolArray,
    lattice: Lattice,
    limits: Sequence[Limit],
    *,
    rng: np.random.Generator,
    scores: FloatArray | None = None,
) -> BoolArray:
    """Return feasible genomes near ``genomes``: too dear ones lose genes, slack is refilled.

    Idempotent: a feasible genome into which no further gene fits comes back unchanged.

    Args:
        genomes: ``(n, n_genes)``.
        lattice: Allowed kept counts per group.
        limits: All must hold; none given leaves only the lattice to be met, without refilling.
        rng: Breaks ties and, without ``scores``, picks the genes.
        scores: ``(n_genes,)`` or ``(n, n_genes)``, larger = more wanted, comparable across groups as a gain for the
            whole network: genes are dropped by least score per unit of cost. Without scores every gene is as likely as
            any other.

    Raises:
        BudgetError: A limit cannot be met by any genome.
        GenomeShapeError: ``scores`` has another shape, or holds NaN.
    """
    check_reachable(lattice, limits)
    n, n_genes = genomes.shape
    if n == 0 or n_genes == 0:
        return genomes.copy()
    priority = _settle_blocks(_priorities(genomes.shape, lattice, limits, rng, scores), genomes, lattice, scores)
    order, ranked = _sort_groups(genomes, priority, lattice)
    counts = lattice.canonical(lattice.floor(count_kept(genomes, lattice)))
    if limits:
        dear = _excess(counts, limits)
        lost, gained = np.flatnonzero(dear), np.flatnonzero(~dear)
        smallest = np.broadcast_to(lattice.min_keep, counts[lost].shape)
        counts[lost] = _most_generous(np.zeros_like(smallest), counts[lost], smallest, ranked, lost, lattice, limits)
        largest = np.broadcast_to(lattice.sizes, counts[gained].shape)
        counts[gained] = _most_generous(counts[gained], largest, counts[gained], ranked, gained, lattice, limits)
        counts = _fill(counts, ranked, lattice, limits)
    return _materialise(order, lattice.canonical(counts), lattice, n_genes)


def _priorities(
    shape: tuple[int, int],
    lattice: Lattice,
    limits: Sequence[Limit],
    rng: np.random.Generator,
    scores: FloatArray | None,
) -> npt.NDArray[np.float32]:
    """Return priorities in [0, 1), ``shape``: random, or the rank of score per cost."""
    if scores is None:
        return rng.random(shape, dtype=np.float32)
    if scores.shape not in (shape, shape[1:]) or np.isnan(scores).any():
        raise GenomeShapeError(
            f"scores must be numbers of shape {shape[1:]} or {shape}, but got shape {scores.shape} with "
            f"{int(np.isnan(scores).sum())} NaN; give one score per gene"
        )
    gene_cost = np.zeros(shape[1])
    for limit in limits:
        per_gene = limit.cost.gene_prices(lattice.sizes, lattice.min_keep, lattice.step) / max(limit.at_most, 1)
        gene_cost += np.repeat(per_gene, lattice.sizes)
    per_cost = np.atleast_2d(scores) / np.maximum(gene_cost, 1e-30) if limits else np.atleast_2d(scores)
    jitter = rng.random(per_cost.shape)
    ranks = np.empty(per_cost.shape, np.float32)
    rows = np.arange(len(per_cost))[:, None]
    ranks[rows, np.lexsort((jitter, per_cost), axis=1)] = np.arange(shape[1], dtype=np.float32) / shape[1]
    return np.broadcast_to(ranks, shape)


def _settle_blocks(
    priority: npt.NDArray[np.float32], genomes: BoolArray, lattice: Lattice, scores: FloatArray | None
) -> npt.NDArray[np.float32]:
    """Return priorities under which removed blocks come back last and, without scores, kept ones go last."""
    if not lattice.is_block.any():
        return priority
    priority = priority.copy()
    genes = lattice.starts[lattice.is_block]
    settled = priority[:, genes] if scores is not None else 0.9 + 0.1 * priority[:, genes]
    priority[:, genes] = np.where(genomes[:, genes], settled, 0)
    return priority


def _sort_groups(
    genomes: BoolArray, priority: npt.NDArray[np.float32], lattice: Lattice
) -> tuple[IntArray, npt.NDArray[np.float32]]:
    """Return, per group, the genes in order of keeping, and their priorities in that order; both ``(n, n_genes)``."""
    key = -(priority + genomes)
    order = np.empty(genomes.shape, np.int64)
    for start, size in zip(lattice.starts, lattice.sizes, strict=True):
        block = slice(start, start + size)
        order[:, block] = np.argsort(key[:, block], axis=1) + start
    return order, np.take_along_axis(priority, order, axis=1)


def _excess(counts: IntArray, limits: Sequence[Limit]) -> BoolArray:
    over = np.zeros(len(counts), np.bool_)
    for limit in limits:
        over |= limit.cost(counts) > limit.at_most
    return over


def _reach(
    ranked: npt.NDArray[np.float32],
    rows: IntArray,
    low: IntArray,
    high: IntArray,
    threshold: FloatArray,
    lattice: Lattice,
) -> IntArray:
    """Return how far each group may be kept, in ``[low, high]``, so that genes behind ``low`` reach ``threshold``.

    All arrays but ``ranked`` have one entry per entry of ``rows``.
    """
    low, high = low.copy(), high.copy()
    flat = ranked.ravel()
    first = lattice.starts + rows[:, None] * ranked.shape[1]
    level = threshold.astype(np.float32)[:, None]
    while True:
        is_open = low < high
        if not is_open.any():
            return low
        middle = (low + high) >> 1
        enough = (flat.take(first + middle, mode="clip") >= level) & is_open
        low = np.where(enough, middle + 1, low)
        high = np.where(enough, high, middle)


def _most_generous(
    least: IntArray,
    most: IntArray,
    best: IntArray,
    ranked: npt.NDArray[np.float32],
    rows: IntArray,
    lattice: Lattice,
    limits: Sequence[Limit],
) -> IntArray:
    """Return the largest counts that one priority threshold per individual allows under the limits.

    The counts at a threshold lie between those at any two thresholds around it, so every step searches less.

    Args:
        least: ``(n, n_groups)`` counts at the highest threshold; what is returned keeps at least these.
        most: Counts at the lowest one.
        best: Counts that meet the limits, returned where no threshold does.
        ranked: Priorities of the whole population in order of keeping.
        rows: ``(n,)`` the individuals in question.
        lattice: Allowed counts.
        limits: All must hold.
    """
    floor, best, least, most = least, best.copy(), least.copy(), most.copy()
    below, above = np.zeros(len(best)), np.ones(len(best))
    active = np.arange(len(best))
    for _ in range(_BISECTIONS):
        active = active[(least[active] < most[active]).any(axis=1)]
        if not len(active):
            break
        middle = (below[active] + above[active]) / 2
        reach = _reach(ranked, rows[active], least[active], most[active], middle, lattice)
        trial = np.maximum(lattice.floor(reach), floor[active])
        over = _excess(trial, limits)
        dear, fits = active[over], active[~over]
        best[fits] = trial[~over]
        below[dear], most[dear] = middle[over], reach[over]
        above[fits], least[fits] = middle[~over], reach[~over]
    return best


def _fill(counts: IntArray, ranked: npt.NDArray[np.float32], lattice: Lattice, limits: Sequence[Limit]) -> IntArray:
    """Give every individual further genes, best priority first, until none fits."""
    counts = counts.copy()
    active = np.arange(len(counts))
    while len(active):
        counts[active] = current = lattice.canonical(counts[active])
        gains = lattice.above(current) - current
        fits = gains > 0
        for limit in limits:
            rise = np.rint(limit.cost.marginals(current, gains))
            slack = limit.at_most - limit.cost(current)
            fits &= rise <= slack[:, None]
        head = np.minimum(lattice.starts + current, ranked.shape[1] - 1)
        next_priority = np.where(fits, np.take_along_axis(ranked[active], head, axis=1), -1)
        chosen = next_priority.argmax(axis=1)
        is_open = fits.any(axis=1)
        rows = active[is_open]
        counts[rows, chosen[is_open]] += gains[is_open, chosen[is_open]]
        active = rows
    return counts


def _materialise(order: IntArray, counts: IntArray, lattice: Lattice, n_genes: int) -> BoolArray:
    genomes = np.empty((len(order), n_genes), np.bool_)
    rows = np.arange(len(order))[:, None] * n_genes
    for column, (start, size) in enumerate(zip(lattice.starts, lattice.sizes, strict=True)):
        keep = np.arange(size) < counts[:, column : column + 1]
        genomes.ravel()[order[:, start : start + size] + rows] = keep
    return genomes
