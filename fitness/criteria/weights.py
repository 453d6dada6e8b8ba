"""Criteria that look at weights alone: norms, batch-norm scales, and the geometric median."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fitness.criteria.contract import ChannelKnowledge
from fitness.criteria.inputs import CriterionInput


@dataclass(frozen=True)
class FilterNorm:
    """Norm of the weights that make a channel, batch norm not folded in.

    Over coupled layers, and over the channels of one gene, absolute values (or squares) are summed before the root: the
    norm of all weights that the gene stands for, which is our reading of the rule for coupled channels.
    """

    order: Literal[1, 2] = 1

    @property
    def name(self) -> str:
        """``l1`` or ``l2``."""
        return f"l{self.order}"

    @property
    def summary(self) -> str:
        """One line for people."""
        return f"L{self.order} norm of the weights that make a channel"

    roles = frozenset({"scores"})
    reference = (
        "Li 2017, Pruning filters for efficient ConvNets, Sec. 3.1 (L1; L2 for comparison); the sum over coupled "
        "layers is our reading"
    )

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores, larger = more wanted, comparable within a group."""
        scores = {}
        for index, group in data.groups:
            total = torch.zeros(group.size, dtype=torch.float64, device=data.device)
            for weight in data.filters(index):
                total += (weight.abs() if self.order == 1 else weight.square()).sum(dim=(1, 2, 3))
            scores[index] = total if self.order == 1 else total.sqrt()
        return ChannelKnowledge(data.sizes, scores=data.gather_scores(scores))


@dataclass(frozen=True)
class BatchNormScale:
    """Magnitude of the batch norm's scale, the mean over the norms that a channel passes.

    A channel that passes no batch norm with a scale counts as 1, the scale of a layer without one.
    """

    name = "bn-gamma"
    summary = "magnitude of the batch norm's scale"
    roles = frozenset({"scores"})
    reference = (
        "Liu 2017, Learning efficient convolutional networks through network slimming, Sec. 3; without its sparse "
        "training, and the mean over coupled norms is our reading"
    )

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores, larger = more wanted; comparable over the network, as the published global cut takes them."""
        scores = {}
        for index, group in data.groups:
            gammas = [gamma.abs().mean(dim=1) for gamma in data.gammas(index)]
            ones = torch.ones(group.size, dtype=torch.float64, device=data.device)
            scores[index] = torch.stack(gammas).mean(dim=0) if gammas else ones
        return ChannelKnowledge(data.sizes, scores=data.gather_scores(scores), is_global=True)


@dataclass(frozen=True)
class GeometricMedian:
    """Summed Euclidean distance of a channel's filter to all others of its group.

    The filter nearest to the geometric median says least that the others do not say. Distances of coupled producers are
    summed (our reading); the channels of one gene form one vector.
    """

    name = "fpgm"
    summary = "distance of a filter to all others of its layer; near the geometric median = redundant"
    roles = frozenset({"scores"})
    reference = "He 2019, Filter pruning via geometric median, Sec. 3; the sum over coupled layers is our reading"

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores, larger = more wanted, comparable within a group."""
        scores = {}
        for index, group in data.groups:
            total = torch.zeros(group.size, dtype=torch.float64, device=data.device)
            for weight in data.filters(index):
                total += _distances(weight.flatten(1)).sum(dim=1)
            scores[index] = total
        return ChannelKnowledge(data.sizes, scores=data.gather_scores(scores))


def _distances(rows: Tensor) -> Tensor:
    """Return the Euclidean distances of all pairs of ``rows`` ``(g, k)``, ``(g, g)``."""
    power = rows.square().sum(dim=1)
    squares = torch.addmm(power[:, None] + power, rows, rows.T, alpha=-2.0).clamp_(min=0.0)
    return squares.fill_diagonal_(0.0).sqrt_()


@dataclass(frozen=True)
class RandomScores:
    """Uniform random numbers: what any rule has to beat."""

    name = "random"
    summary = "random numbers: what any other criterion has to beat"
    roles = frozenset({"scores"})
    reference = "no source; a baseline"

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores drawn from [0, 1) by the input's seed."""
        return ChannelKnowledge(data.sizes, scores=data.rng(self.name).random(data.space.n_genes))
