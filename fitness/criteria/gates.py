"""Criteria from gradients: what the loss says about a gate on every gene, coupled layers taken together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fitness.criteria.contract import ChannelKnowledge
from fitness.criteria.inputs import CriterionInput
from search_spaces.genome import FloatArray


@dataclass(frozen=True)
class GroupFisher:
    """Fisher information of a gate on the gene: ``s = 1/(2N) sum_n (sum over consumers of dL_n/dm)^2``.

    The rise of the loss to second order when the gene goes. The published rank is ``s`` per memory or MACs freed; the
    division is left to repair, which takes scores per cost.
    """

    name = "group-fisher"
    summary = "Fisher information of a gate on the gene, coupled layers taken together"
    roles = frozenset({"scores"})
    reference = (
        "Liu 2021, Group Fisher pruning, arXiv 2108.00708; without its interleaved training, and by predictions where "
        "there are no labels"
    )

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores, larger = more wanted; comparable over the network.

        Raises:
            DataError: The network's first output is not a matrix of logits, or a label lies outside of it.
        """
        scores = np.square(data.gate_gradients).mean(axis=0) / 2
        return ChannelKnowledge(data.sizes, scores=_blocks_first(data, scores), is_global=True)


@dataclass(frozen=True)
class FirstOrderTaylor:
    """Mean over images of the magnitude of the loss's first-order change when the gene goes: ``|sum a dL/da|``.

    Published with the mean over places instead of the sum and scaled to unit length per layer, both to make layers
    comparable; the order inside a layer is the same, and unscaled the figure is a change of the loss. The sum over
    coupled consumers before the magnitude is our reading.
    """

    name = "taylor"
    summary = "first-order change of the loss when the gene goes"
    roles = frozenset({"scores"})
    reference = (
        "Molchanov 2017, Pruning convolutional neural networks for resource efficient inference, Sec. 2.2; unscaled, "
        "and the sum over coupled layers, are our reading; by predictions where there are no labels"
    )

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores, larger = more wanted; comparable over the network.

        Raises:
            DataError: The network's first output is not a matrix of logits, or a label lies outside of it.
        """
        scores = np.abs(data.gate_gradients).mean(axis=0)
        return ChannelKnowledge(data.sizes, scores=_blocks_first(data, scores), is_global=True)


def _blocks_first(data: CriterionInput, scores: FloatArray) -> FloatArray:
    return data.gather_scores({index: scores[group.start : group.stop] for index, group in data.groups})
