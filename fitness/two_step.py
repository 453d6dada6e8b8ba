"""The two-step approximation: layer errors of whole populations from Gram matrices.

Step one (E1) is the error without update: a quadratic form of the dropped genes, one matrix product for a population.
Step two (E2) is the error that the optimal update of the remaining weights leaves, one Cholesky factorisation per layer
and genome. A layer's error is divided by the power of its output, so that layers can be compared, and the errors of all
layers are summed: our reading, since the paper works on one layer at a time.

References:
    "A novel channel pruning method for deep neural network compression", arXiv 1805.11394, 2018. Only abstract and
    notes were readable: the formulas are our reading.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fitness.elimination import Elimination, LayerElimination, PlainElimination, UpdatedElimination, eliminate
from fitness.evaluation import Evaluation, evaluations_without_images
from fitness.exact_sums import exactly_summable
from fitness.folding import keep_mask
from fitness.layer_error import optimal_update
from fitness.planar import planar
from fitness.program import Program
from fitness.statistics import ConsumerStatistics, DenseStatistics
from search_spaces.errors import OptionError, UnknownNameError
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.groups import ChannelGroup

E1_RUNG, E2_RUNG = "e1", "e2"
_MAX_KNOWN = 1 << 16


@dataclass(frozen=True)
class GeneGram:
    """Genes that meet in some layer, and what dropping them together costs: ``error = 1/2 u^T gram u``.

    Attributes:
        genes: ``(g,)`` sorted.
        gram: ``(g, g)``, relative to the layers' energies and summed over layers. Entries are multiples of one power of
            two that is coarse enough for every partial sum to be exact: errors do not depend on the size of a
            population.
    """

    genes: IntArray
    gram: FloatArray


class TwoStep:
    """Errors, marginals, orders and scores of one network from its dense statistics. Errors are minimised."""

    def __init__(
        self,
        program: Program,
        statistics: DenseStatistics,
        *,
        damping: float = 1e-2,
        eliminations: Mapping[str, Elimination] | None = None,
    ) -> None:
        """Join the layers' Gram matrices per set of genes that meet.

        Args:
            program: The folded network.
            statistics: Its statistics.
            damping: Ridge of the second step, relative to the mean squared regressor; positive.
            eliminations: Per group, where they are known already; computed on demand otherwise.

        Raises:
            OptionError: ``damping`` is not positive.
        """
        if not damping > 0:
            raise OptionError(f"`damping > 0` must hold, but got {damping}; the default is 1e-2")
        self.program = program
        self.space = program.space
        self.statistics = statistics
        self.damping = damping
        self.blocks = _blocks(statistics.consumers)
        self._rows: dict[str, Tensor] = {}
        self._known: dict[tuple[str, bytes], float] = {}  # errors of layers, of which a search asks again and again
        self._eliminations = dict(eliminations or {})

    # ------------------------------------------------------------------ errors

    def e1(self, genomes: BoolArray) -> FloatArray:
        """Return the error ``(n,)`` without update of ``genomes`` ``(n, n_genes)``: 0 for the dense network.

        One layer that loses its whole output contributes about 1.
        """
        self.space.check_genomes(genomes)
        error = np.zeros(len(genomes))
        for block in self.blocks:
            dropped = (~genomes[:, block.genes]).astype(np.float64)
            error += ((dropped @ block.gram) * dropped).sum(axis=1) / 2
        return error

    def e2(self, genomes: BoolArray) -> FloatArray:
        """Return the error ``(n,)`` after the optimal update of ``genomes`` ``(n, n_genes)``; at most :meth:`e1`.

        Layers whose weights cannot be updated on their own (transposed, or called more than once), that have no
        covariance, or whose system is ill-conditioned contribute their E1.
        """
        self.space.check_genomes(genomes)
        return np.array([sum(self._layer_errors(genome)) for genome in genomes], np.float64)

    def _layer_errors(self, genome: BoolArray) -> Iterator[float]:
        for consumer in self.statistics.consumers:
            kept = genome[consumer.genes]
            if kept.all() or not consumer.energy > 0:
                continue
            key = (consumer.layer, np.packbits(kept).tobytes())
            error = self._known.get(key)
            if error is None:
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                error = self._known[key] = self._layer_error(consumer, genome)
            yield error

    def _layer_error(self, consumer: ConsumerStatistics, genome: BoolArray) -> float:
        dropped_genes = (~genome[consumer.genes]).astype(np.float64)
        plain = float(dropped_genes @ consumer.gram @ dropped_genes) / 2
        updated = self._updated_error(consumer, genome)
        return (plain if updated is None else min(updated, plain)) * 2 / consumer.energy

    def _updated_error(self, consumer: ConsumerStatistics, genome: BoolArray) -> float | None:
        if not self._is_updatable(consumer):
            return None
        keep = keep_mask(consumer.column_genes, genome)
        kept, dropped = torch.from_numpy(np.flatnonzero(keep)), torch.from_numpy(np.flatnonzero(~keep))
        error = 0.0
        for covariance, rows in zip(consumer.covariance, self._rows_of(consumer), strict=True):
            found = optimal_update(covariance, rows, kept, dropped, self.damping)
            if found is None:
                return None
            error += found[1]
        return error

    def _is_updatable(self, consumer: ConsumerStatistics) -> bool:
        layer = self.program.layers[consumer.layer]
        return consumer.has_covariance and not layer.is_shared and not layer.record.is_transposed

    def _rows_of(self, consumer: ConsumerStatistics) -> Tensor:
        if consumer.layer not in self._rows:
            view = planar(self.program.layers[consumer.layer])
            assert view is not None
            self._rows[consumer.layer] = view.rows
        return self._rows[consumer.layer]

    # ------------------------------------------------------------------ marginals

    def flip_marginals(self, genome: BoolArray) -> FloatArray:
        """Return by how much E1 of ``genome`` ``(n_genes,)`` rises when each gene alone is flipped; ``(n_genes,)``."""
        marginals = np.zeros(self.space.n_genes)
        for block in self.blocks:
            kept = genome[block.genes]
            slope = block.gram @ (~kept).astype(np.float64)
            marginals[block.genes] = np.where(kept, slope, -slope) + np.diagonal(block.gram) / 2
        return marginals

    def swap_marginals(self, genome: BoolArray, dropped: int) -> FloatArray:
        """Return by how much E1 of ``genome`` rises when ``dropped`` is revived and each other gene goes for it.

        Args:
            genome: ``(n_genes,)``.
            dropped: A gene that ``genome`` drops.

        Returns:
            ``(n_genes,)``; ``inf`` for genes that ``genome`` does not keep.

        Raises:
            OptionError: ``genome`` keeps that gene.
        """
        if genome[dropped]:
            raise OptionError(f"a swap must revive a dropped gene, but gene {dropped} is kept")
        single = self.flip_marginals(genome)
        marginals = np.where(genome, single + single[dropped], np.inf)
        for block in self.blocks:
            place = np.flatnonzero(block.genes == dropped)
            if len(place):
                marginals[block.genes] -= block.gram[place[0]]
        return marginals

    # ------------------------------------------------------------------ elimination

    def elimination(self, group: ChannelGroup) -> Elimination:
        """Return how ``group`` loses its genes while all other groups stay whole; computed once."""
        if group.name not in self._eliminations:
            self._eliminations[group.name] = eliminate(group.start, group.size, list(self._layers_of(group)))
        return self._eliminations[group.name]

    @property
    def eliminations(self) -> Mapping[str, Elimination]:
        """The elimination of every group, by its name."""
        return {group.name: self.elimination(group) for group in self.space.groups}

    def order(self, group: ChannelGroup) -> IntArray:
        """Return the genes of ``group`` ``(size,)``, first removed first."""
        return self.elimination(group).order

    @property
    def curves(self) -> Mapping[str, FloatArray]:
        """Per group name, the error ``(size,)`` after each removal in :meth:`order`."""
        return {name: elimination.error for name, elimination in self.eliminations.items()}

    def scores(self) -> FloatArray:
        """Return how wanted each gene is, ``(n_genes,)``, larger = more, comparable over the network.

        The score is the error that the gene's removal adds in its group's elimination, at least that of the genes
        before it: sorting by score gives the order back. Genes that no measured layer reads are wanted most: nothing is
        known against them.
        """
        scores = np.zeros(self.space.n_genes)
        for elimination in self.eliminations.values():
            scores[elimination.order] = np.maximum.accumulate(np.diff(elimination.error, prepend=0.0))
        known = np.zeros(self.space.n_genes, np.bool_)
        for consumer in self.statistics.consumers:
            known[consumer.genes] = True
        scores[~known] = scores.max(initial=1.0)
        return scores

    def _layers_of(self, group: ChannelGroup) -> Iterator[LayerElimination]:
        wanted = np.arange(group.start, group.stop)
        for consumer in self.statistics.consumers:
            if not np.isin(wanted, consumer.genes).any() or not consumer.energy > 0:
                continue
            columns = _columns_of(consumer, wanted)
            if columns is None or not self._is_updatable(consumer):
                yield PlainElimination(_padded(consumer, wanted) * (2 / consumer.energy))
                continue
            for covariance, rows in zip(consumer.covariance, self._rows_of(consumer), strict=True):
                yield UpdatedElimination(covariance, rows, columns, 2 / consumer.energy, self.damping)


def _columns_of(consumer: ConsumerStatistics, genes: IntArray) -> IntArray | None:
    """Return the columns ``(n, m)`` of ``genes``, or ``None`` where they differ in number."""
    columns = [np.flatnonzero(consumer.column_genes == gene) for gene in genes]
    same = len({len(column) for column in columns}) == 1 and len(columns[0]) > 0
    return np.stack(columns) if same else None


def _padded(consumer: ConsumerStatistics, genes: IntArray) -> FloatArray:
    """Return the consumer's Gram for ``genes``, zero for those that it does not read."""
    gram = np.zeros((len(genes), len(genes)))
    read = np.isin(genes, consumer.genes)
    places = np.searchsorted(consumer.genes, genes[read])
    gram[np.ix_(read, read)] = consumer.gram[np.ix_(places, places)]
    return gram


def _blocks(consumers: Sequence[ConsumerStatistics]) -> list[GeneGram]:
    """Return disjoint sets of genes that meet in a layer, with the summed relative Gram of each."""
    sets: list[tuple[set[int], list[ConsumerStatistics]]] = []
    for consumer in consumers:
        if not consumer.energy > 0:
            continue
        genes, members = set(consumer.genes.tolist()), [consumer]
        apart = []
        for other_genes, other_members in sets:
            if genes & other_genes:
                genes |= other_genes
                members = other_members + members
            else:
                apart.append((other_genes, other_members))
        sets = [*apart, (genes, members)]
    blocks = []
    for found, members in sets:
        genes_of_block = np.array(sorted(found), np.int64)
        gram = np.zeros((len(found), len(found)))
        for consumer in members:
            places = np.searchsorted(genes_of_block, consumer.genes)
            gram[np.ix_(places, places)] += consumer.gram * (2 / consumer.energy)
        blocks.append(GeneGram(genes_of_block, exactly_summable((gram + gram.T) / 2)))
    return blocks


class TwoStepEvaluator:
    """Judges genomes by E1 or E2; no image is passed forward."""

    def __init__(self, two_step: TwoStep) -> None:
        """Judge by ``two_step``."""
        self.two_step = two_step

    @cached_property
    def rungs(self) -> Sequence[str]:
        """``e1``, which judges a population at once, and ``e2``."""
        return (E1_RUNG, E2_RUNG)

    def evaluate(self, genomes: BoolArray, rung: str) -> list[Evaluation]:
        """Return one evaluation per row of ``genomes`` ``(n, n_genes)``, in order.

        Raises:
            UnknownNameError: There is no such rung.
        """
        if rung not in self.rungs:
            raise UnknownNameError("rung", rung, self.rungs)
        started = time.perf_counter()
        errors = self.two_step.e1(genomes)
        metrics = [{E1_RUNG: float(error)} for error in errors]
        if rung == E2_RUNG:
            errors = self.two_step.e2(genomes)
            for entry, error in zip(metrics, errors, strict=True):
                entry[E2_RUNG] = float(error)
        return evaluations_without_images(genomes, rung, errors, metrics, time.perf_counter() - started)
