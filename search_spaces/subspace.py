"""A part of a search space: some groups are open, all others stay as a background genome has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from search_spaces.cost import Cost
from search_spaces.errors import GenomeShapeError, OptionError
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.groups import ChannelGroup
from search_spaces.repair import Lattice, Limit, check_reachable, count_kept, draw_genomes, repair
from search_spaces.space import SearchSpace


@dataclass(frozen=True)
class PartialCost:
    """A cost of the whole network as a function of the kept counts of some groups, the others keeping theirs.

    Attributes:
        whole: The cost as a function of all counts.
        open_groups: ``(n_open,)`` indices of the groups that remain variables.
        background: ``(n_groups,)`` kept counts; those of open groups do not matter.
        lattice: Of the whole space.
    """

    whole: Cost
    open_groups: IntArray
    background: IntArray
    lattice: Lattice

    @property
    def unit(self) -> str:
        """What is counted."""
        return self.whole.unit

    def __call__(self, counts: IntArray) -> IntArray:
        """Return the cost ``(n,)`` for kept ``counts`` ``(n, n_open)``."""
        return self.whole(self._filled(counts, self.background))

    def marginals(self, counts: IntArray, steps: IntArray) -> FloatArray:
        """Return by how much the cost rises, ``(n, n_open)``, when each open group alone gains ``steps`` genes."""
        gains = self._filled(np.broadcast_to(steps, counts.shape), np.zeros_like(self.background))
        return self.whole.marginals(self._filled(counts, self.background), gains)[:, self.open_groups]

    def gene_prices(self, sizes: IntArray, least: IntArray, steps: IntArray) -> FloatArray:
        """Return what one gene of each open group costs in the whole dense network, ``(n_open,)``."""
        whole = (self.lattice.sizes, self.lattice.min_keep, self.lattice.step)
        filled = (self._filled(part[None], of)[0] for part, of in zip((sizes, least, steps), whole, strict=True))
        return self.whole.gene_prices(*filled)[self.open_groups]

    def _filled(self, counts: IntArray, others: IntArray) -> IntArray:
        filled = np.repeat(others[None], len(counts), axis=0)
        filled[:, self.open_groups] = counts
        return filled


@dataclass(frozen=True)
class SubSpace:
    """The genomes of ``whole`` that agree with ``background`` outside some groups. Budgets are those of the network.

    Its genomes have the genes of the open groups only, in the order of the whole space; costs and budgets are those of
    the whole network with the background filled in.

    Attributes:
        whole: The space it is a part of.
        open_groups: ``(n_open,)`` indices of the open groups, ascending.
        background: ``(whole.n_genes,)``; its open genes do not matter.

    Raises:
        OptionError: No group is open, an index is unknown or twice there, or they are out of order.
        GenomeShapeError: ``background`` does not fit the whole space.
    """

    whole: SearchSpace
    open_groups: IntArray
    background: BoolArray

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        n_groups, opened = len(self.whole.groups), self.open_groups
        ascending = len(opened) > 0 and (np.diff(opened) > 0).all() and opened[0] >= 0 and opened[-1] < n_groups
        if not ascending:
            raise OptionError(
                f"the open groups of a part must be ascending indices below {n_groups}, at least one, but got "
                f"{opened.tolist()}; take them from `space.groups`"
            )
        if self.background.shape != (self.whole.n_genes,):
            raise GenomeShapeError(
                f"a background must have shape ({self.whole.n_genes},), but got {self.background.shape}; "
                "it belongs to another search space"
            )

    # ------------------------------------------------------------------ what it holds

    @cached_property
    def open_genes(self) -> IntArray:
        """Indices ``(n_genes,)`` of the open genes in the whole space."""
        groups = [self.whole.groups[index] for index in self.open_groups]
        return np.concatenate([np.arange(group.start, group.stop, dtype=np.int64) for group in groups])

    @property
    def n_genes(self) -> int:
        """Length of a genome."""
        return len(self.open_genes)

    @cached_property
    def groups(self) -> Sequence[ChannelGroup]:
        """The open groups, their genes counted within this part."""
        opened = [self.whole.groups[index] for index in self.open_groups]
        return tuple(replace(g, start=int(start)) for g, start in zip(opened, self.lattice.starts, strict=True))

    @cached_property
    def lattice(self) -> Lattice:
        """Allowed kept counts of the open groups."""
        whole, opened = self.whole.lattice, self.open_groups
        sizes = whole.sizes[opened]
        place = np.full(len(whole.sizes), -1, np.int64)
        place[opened] = np.arange(len(opened))
        owner = whole.owner[opened]
        return Lattice(
            starts=np.cumsum(sizes) - sizes,
            sizes=sizes,
            min_keep=whole.min_keep[opened],
            step=whole.step[opened],
            is_block=whole.is_block[opened],
            owner=np.where(owner >= 0, place[np.maximum(owner, 0)], -1),
        )

    # ------------------------------------------------------------------ to the whole space and back

    def embed(self, genomes: BoolArray, background: BoolArray | None = None) -> BoolArray:
        """Return the genomes ``(n, whole.n_genes)`` of the whole space that ``genomes`` ``(n, n_genes)`` stand for.

        Args:
            genomes: Genes of the open groups.
            background: ``(whole.n_genes,)`` what the other genes are; that of this part by default.
        """
        filled = np.repeat((self.background if background is None else background)[None], len(genomes), axis=0)
        filled[:, self.open_genes] = genomes
        return filled

    def extract(self, genomes: BoolArray) -> BoolArray:
        """Return the open genes ``(n, n_genes)`` of ``genomes`` ``(n, whole.n_genes)``."""
        return np.ascontiguousarray(genomes[:, self.open_genes])

    # ------------------------------------------------------------------ cost

    @cached_property
    def _background_counts(self) -> IntArray:
        return np.asarray(count_kept(self.background[None], self.whole.lattice)[0])

    def macs(self, genomes: BoolArray) -> IntArray:
        """Return the exact MACs per sample of the whole network, ``(n,)``."""
        return self.whole.macs(self.embed(genomes))

    def n_params(self, genomes: BoolArray) -> IntArray:
        """Return the exact number of parameters of the whole network, ``(n,)``."""
        return self.whole.n_params(self.embed(genomes))

    @cached_property
    def costs(self) -> Mapping[str, Cost]:
        """Every cost of the whole network that may be budgeted, by metric, as a function of the open groups."""
        counts, lattice = self._background_counts, self.whole.lattice
        return {m: PartialCost(cost, self.open_groups, counts, lattice) for m, cost in self.whole.costs.items()}

    def cost(self, metric: str, genomes: BoolArray) -> IntArray:
        """Return what the whole network costs in whole units of ``metric``, ``(n,)``.

        Raises:
            UnknownNameError: The space has no such cost.
        """
        return self.whole.cost(metric, self.embed(genomes))

    def cost_range(self, metric: str) -> tuple[int, int]:
        """Return what the network costs with as little as possible of this part, and what the whole dense one does.

        Raises:
            UnknownNameError: The space has no such cost.
        """
        dense = self.whole.cost_range(metric)[1]
        return int(self.costs[metric](self.lattice.min_keep[None])[0]), dense

    def limits(self, budgets: Mapping[str, float]) -> tuple[Limit, ...]:
        """Return budgets of the whole network, shares in (0, 1] by metric, as limits on the open groups.

        Raises:
            BudgetError: A budget is malformed, or no genome of this part meets it.
            UnknownNameError: The space has no cost of that name.
        """
        pairs = zip(budgets, self.whole.limits(budgets), strict=True)
        limits = tuple(Limit(self.costs[metric], limit.at_most) for metric, limit in pairs)
        check_reachable(self.lattice, limits)
        return limits

    # ------------------------------------------------------------------ feasible genomes

    def repair(
        self,
        genomes: BoolArray,
        *,
        rng: np.random.Generator,
        budgets: Mapping[str, float],
        scores: FloatArray | None = None,
    ) -> BoolArray:
        """Return genomes near ``genomes`` with which the whole network is feasible; see :meth:`SearchSpace.repair`.

        Args:
            genomes: ``(n, n_genes)``.
            rng: Breaks ties and, without ``scores``, picks the genes.
            budgets: Fractions in (0, 1] of the costs of the whole dense network, by metric; never exceeded.
            scores: ``(n_genes,)`` or ``(n, n_genes)``, larger = more wanted; least score per cost goes first.

        Raises:
            BudgetError: A budget is malformed, or no genome of this part meets it.
            GenomeShapeError: An array does not fit.
        """
        if genomes.ndim != 2 or genomes.shape[1] != self.n_genes or genomes.dtype != np.bool_:
            raise GenomeShapeError(
                f"genomes of this part must be a boolean array of shape (n, {self.n_genes}), but got shape "
                f"{genomes.shape} of {genomes.dtype}; `extract` cuts them from genomes of the whole space"
            )
        return repair(genomes, self.lattice, self.limits(budgets), rng=rng, scores=scores)

    def sample(self, *, rng: np.random.Generator, n: int, budgets: Mapping[str, float]) -> BoolArray:
        """Return ``n`` random feasible genomes, ``(n, n_genes)``, diverse in their widths.

        Raises:
            BudgetError: A budget is malformed, or no genome of this part meets it.
        """
        return self.repair(draw_genomes(self.lattice, n, rng=rng), rng=rng, budgets=budgets)
