"""Entropic sparsification: every layer as a linear regression on its inputs, with channel weights on the simplex."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fitness.criteria.contract import ChannelKnowledge
from fitness.criteria.inputs import CriterionInput
from fitness.criteria.layer_statistics import MAX_COVARIANCE_BYTES
from fitness.planar import planar
from fitness.statistics import ConsumerStatistics, StatisticsOptions
from fitness.statistics_cache import cached_statistics
from search_spaces.errors import check_rules
from search_spaces.genome import FloatArray, IntArray

_N_HALVINGS = 20
#: Weights stay above it: a share of nothing could never come back.
_SMALLEST = 1e-6


@dataclass(frozen=True)
class LayerRegression:
    """A layer as a regression of its dense outputs on its inputs, by second moments alone.

    Attributes:
        covariance: ``(groups, k, k)`` float64 of the input columns.
        rows: ``(groups, out, k)`` float64 dense weights.
        member: ``(k,)`` index of the gene that each column belongs to, ``n_genes`` for columns that always stay.
        n_genes: Genes that the layer reads.
    """

    covariance: Tensor
    rows: Tensor
    member: Tensor
    n_genes: int

    @property
    def energy(self) -> float:
        """Power of the dense output."""
        return float(torch.einsum("gok,gkl,gol->", self.rows, self.covariance, self.rows))

    def per_column(self, weights: Tensor) -> Tensor:
        """Return the factor of each column, ``n_genes * w``: 1 for uniform weights and for columns that always stay."""
        return torch.cat([self.n_genes * weights, weights.new_ones(1)])[self.member]


@dataclass(frozen=True)
class EntropicSparsification:
    """Channel weights ``w`` on the simplex, found by turns with the regression ``Lambda``: ``W X ~ Lambda D(w) X``.

    Minimised is ``|W X - Lambda D(w) X|^2 / |W X|^2 + ridge |Lambda|^2 h / |W X|^2 + entropy H(w) / log C``, with ``h``
    the mean squared input, ``C`` channels and ``D = C diag(w)``. ``Lambda`` is solved in closed form; ``w`` descends at
    fixed ``Lambda D``, where the error does not change, by multiplicative (exponentiated-gradient) steps that are
    halved until the objective falls. A channel that says nothing costs no ridge, so its weight falls first.

    Attributes:
        entropy: Weight of the entropy; larger, sparser.
        ridge: Weight of the regression's squared coefficients; without it the channel weights would mean nothing.
        n_rounds: Turns of both.
        n_steps: Multiplicative steps per turn.
        max_columns: Layers with more input weights per output are regressed per channel, with one coefficient each.
    """

    entropy: float = 0.1
    ridge: float = 0.01
    n_rounds: int = 6
    n_steps: int = 6
    max_columns: int = 1200

    name = "entropic"
    summary = "channel weights on the simplex, driven into sparsity by their entropy, per layer regression"
    roles = frozenset({"scores"})
    reference = (
        "Entropic sparsification, arXiv 2404.04734 (Neural Computation 2025; abstract and summary): signs, constants "
        "and the descent are our reconstruction, the mean over several consumers is ours"
    )

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            OptionError: One is out of its range.
        """
        check_rules(
            [
                ("0 <= entropy < inf", 0 <= self.entropy < float("inf"), self.entropy),
                ("0 < ridge < inf", 0 < self.ridge < float("inf"), self.ridge),
                ("n_rounds >= 1", self.n_rounds >= 1, self.n_rounds),
                ("n_steps >= 1", self.n_steps >= 1, self.n_steps),
                ("max_columns >= 0", self.max_columns >= 0, self.max_columns),
            ]
        )

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return ``C w`` of each gene, 1 = average, larger = more wanted: the mean over the layers that read it.

        Comparable within a group. A gene that no measured layer reads is worth 0, as all of its group.
        """
        data = data.on_processor()
        statistics = cached_statistics(data.program, data.inputs, StatisticsOptions(max_bytes=MAX_COVARIANCE_BYTES))
        total, count = np.zeros(data.space.n_genes), np.zeros(data.space.n_genes)
        for consumer in statistics.consumers:
            if consumer.energy > 0:
                weights = self.solve(self.regression(data, consumer))
                total[consumer.genes] += weights * len(weights)
                count[consumer.genes] += 1
        scores = total / np.maximum(count, 1)
        known = {index: scores[group.start : group.stop] for index, group in data.groups}
        return ChannelKnowledge(data.sizes, scores=data.gather_scores(known))

    def regression(self, data: CriterionInput, consumer: ConsumerStatistics) -> LayerRegression:
        """Return the regression of one layer; per channel, from its Gram matrix, where the whole one is too dear."""
        view = planar(data.program.layers[consumer.layer])
        n_genes = len(consumer.genes)
        if view is None or not consumer.has_covariance or len(consumer.column_genes) > self.max_columns:
            gram = torch.from_numpy(consumer.gram).double().to(data.device)
            ones = gram.new_ones(1, 1, n_genes)
            return LayerRegression(gram[None], ones, torch.arange(n_genes, device=data.device), n_genes)
        member = _members(consumer.column_genes, consumer.genes)
        return LayerRegression(
            consumer.covariance.double().to(data.device),
            view.rows.double(),
            torch.from_numpy(member).to(data.device),
            n_genes,
        )

    def solve(self, layer: LayerRegression) -> FloatArray:
        """Return the weights ``(n_genes,)`` of one layer: positive, of sum 1."""
        weights = torch.full((layer.n_genes,), 1 / layer.n_genes, dtype=torch.float64, device=layer.rows.device)
        if layer.n_genes == 1 or not layer.energy > 0:
            return weights.cpu().numpy()
        for _ in range(self.n_rounds):
            penalties = self.penalties(layer, self.coefficients(layer, weights) * layer.per_column(weights))
            for _ in range(self.n_steps):
                weights = self._descend(weights, penalties)
        return weights.cpu().numpy()

    def objective(self, layer: LayerRegression, weights: Tensor, coefficients: Tensor) -> float:
        """Return what is minimised, for ``weights`` ``(n_genes,)`` and ``Lambda`` ``(groups, out, k)``."""
        residual = layer.rows - coefficients * layer.per_column(weights)
        error = torch.einsum("gok,gkl,gol->", residual, layer.covariance, residual)
        ridge = self.ridge * self._mean_square(layer) * coefficients.square().sum()
        return float((error + ridge) / layer.energy) + self.entropy * _entropy(weights)

    def coefficients(self, layer: LayerRegression, weights: Tensor) -> Tensor:
        """Return the regression ``Lambda`` ``(groups, out, k)`` that is optimal for ``weights``."""
        factors = layer.per_column(weights)
        system = layer.covariance * factors[:, None] * factors[None, :]
        system.diagonal(dim1=1, dim2=2).add_(self.ridge * self._mean_square(layer) + 1e-300)
        moment = (layer.rows @ layer.covariance) * factors
        return torch.linalg.solve(system, moment.transpose(1, 2)).transpose(1, 2)

    def penalties(self, layer: LayerRegression, product: Tensor) -> Tensor:
        """Return what the ridge costs each gene at uniform weights, ``(n_genes,)``, given ``Lambda D``.

        With the product given the error is fixed, and the ridge is ``sum penalty_i / (C w_i)^2``.
        """
        squares = product.square().sum(dim=(0, 1))
        total = squares.new_zeros(layer.n_genes + 1).index_add_(0, layer.member, squares)[: layer.n_genes]
        return total * (self.ridge * self._mean_square(layer) / layer.energy)

    def _mean_square(self, layer: LayerRegression) -> float:
        return float(layer.covariance.diagonal(dim1=1, dim2=2).mean())

    def _descend(self, weights: Tensor, penalties: Tensor) -> Tensor:
        """Return the weights after one multiplicative step that does not raise the objective, by e-fold at most."""
        n = len(weights)

        def value(candidate: Tensor) -> float:
            return float((penalties / (n * candidate).square()).sum()) + self.entropy * _entropy(candidate)

        gradient = -2 * penalties / (n**2 * weights**3) - self.entropy * (weights.log() + 1) / np.log(n)
        spread = float(gradient.max() - gradient.min())
        rate, before = 1 / max(spread, 1e-300), value(weights)
        for _ in range(_N_HALVINGS):
            exponents = -rate * gradient
            candidate = (weights * (exponents - exponents.max()).exp()).clamp(min=_SMALLEST)
            candidate = candidate / candidate.sum()
            if value(candidate) <= before:
                return candidate
            rate /= 2
        return weights


def _entropy(weights: Tensor) -> float:
    """Return the entropy of ``weights`` over that of uniform ones, in [0, 1]."""
    logs = torch.where(weights > 0, weights.clamp(min=1e-300).log(), 0.0)
    return float(-(weights * logs).sum() / np.log(len(weights)))


def _members(column_genes: IntArray, genes: IntArray) -> IntArray:
    """Return the position of each column's gene in ``genes``, their number where the column always stays."""
    places = np.searchsorted(genes, column_genes)
    return np.where(column_genes >= 0, places, len(genes)).astype(np.int64)
