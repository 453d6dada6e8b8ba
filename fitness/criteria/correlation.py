"""Linear dependence of feature maps: correlations between channels, and how many principal components they need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from fitness.criteria.contract import ChannelKnowledge
from fitness.criteria.inputs import CriterionInput
from search_spaces.errors import check_rules
from search_spaces.genome import BoolArray, FloatArray

#: A map with less than this share of its mean square as variance counts as constant.
_CONSTANT = 1e-10


@dataclass(frozen=True)
class MapCorrelation:
    """Correlations of a group's maps over images and places, and the principal components behind them.

    Only the selection of CCM is taken over: its loss, which drives maps into linear dependence, belongs to training.

    Attributes:
        variance_share: Of the standardised maps, that the kept components explain; in (0, 1].
    """

    variance_share: float = 0.95

    name = "ccm"
    summary = "linear dependence of feature maps; widths from the principal components"
    roles = frozenset({"scores", "similarity", "widths"})
    reference = (
        "CCM-loss, arXiv 2310.06344 (abstract only): correlation matrix and retained count by PCA; scores from the "
        "same matrix, and the mean over coupled views, are our reconstruction"
    )

    def __post_init__(self) -> None:
        """Check the share.

        Raises:
            OptionError: It lies outside of (0, 1].
        """
        check_rules([("0 < variance_share <= 1", 0 < self.variance_share <= 1, self.variance_share)])

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores, pair similarities and widths.

        * scores: 1 minus the mean ``|R_ij|`` to the others, larger = more wanted; 0 for a constant map.
        * similarity: ``|R|``, the mean over the distinct values that layers read the group from.
        * widths: retained components over channels, of the view that needs most.
        """
        scores, similarity = {}, {}
        widths = np.ones(len(data.sizes))
        for index, views in view_moments(data).items():
            found = [correlation(*view) for view in views]
            similarity[index] = np.mean([np.abs(matrix) for matrix, _ in found], axis=0)
            constant = np.all([is_constant for _, is_constant in found], axis=0)
            scores[index] = independence(similarity[index], constant)
            n_retained = max(retained_count(m[~c][:, ~c], self.variance_share) for m, c in found)
            widths[index] = n_retained / data.sizes[index]
        return ChannelKnowledge(data.sizes, scores=data.gather_scores(scores), similarity=similarity, widths=widths)


def view_moments(data: CriterionInput) -> dict[int, list[tuple[FloatArray, FloatArray]]]:
    """Return, per group and view, mean ``(g,)`` and raw second moments ``(g, g)`` over images, channels and places."""
    sums: dict[int, list[list[Tensor]]] = {}
    counts: dict[int, list[int]] = {}
    for batch in data.batches("read"):
        for index, views in batch.items():
            rows = [view.double().transpose(0, 1).flatten(1) for view in views]
            parts = [[row.sum(dim=1), row @ row.T] for row in rows]
            if index not in sums:
                sums[index], counts[index] = parts, [row.shape[1] for row in rows]
                continue
            for view, (total, second) in enumerate(parts):
                sums[index][view][0] += total
                sums[index][view][1] += second
                counts[index][view] += rows[view].shape[1]
    return {
        index: [
            ((total / max(n, 1)).cpu().numpy(), (second / max(n, 1)).cpu().numpy())
            for (total, second), n in zip(views, counts[index], strict=True)
        ]
        for index, views in sums.items()
    }


def correlation(mean: FloatArray, second: FloatArray) -> tuple[FloatArray, BoolArray]:
    """Return Pearson's correlations ``(g, g)`` and which channels are constant ``(g,)``.

    A constant channel correlates with nothing but itself.

    Args:
        mean: ``(g,)``.
        second: ``(g, g)`` raw second moments.
    """
    covariance = second - np.outer(mean, mean)
    variance = np.diagonal(covariance)
    constant = variance <= _CONSTANT * np.diagonal(second)
    scale = np.sqrt(np.where(constant, 1.0, variance))
    matrix = covariance / np.outer(scale, scale)
    matrix[constant, :] = matrix[:, constant] = 0.0
    matrix = np.clip((matrix + matrix.T) / 2, -1.0, 1.0)
    np.fill_diagonal(matrix, 1.0)
    return matrix, constant


def independence(similarity: FloatArray, constant: BoolArray) -> FloatArray:
    """Return 1 minus the mean similarity to the others that vary, ``(g,)``; 0 for constants, 1 for a lone one."""
    varying = ~constant
    others = np.maximum(varying.sum() - 1, 1)
    total = similarity[:, varying].sum(axis=1) - 1.0
    return np.where(constant, 0.0, 1.0 - total / others)


def retained_count(matrix: FloatArray, variance_share: float) -> int:
    """Return how many principal components of a correlation ``matrix`` explain ``variance_share``; 1 at least.

    Constant channels are to be left out; a matrix without any channel counts 1 too.
    """
    if not len(matrix):
        return 1
    values = np.sort(np.linalg.eigvalsh(matrix))[::-1].clip(min=0.0)
    explained = np.cumsum(values) / max(float(values.sum()), 1e-300)
    return max(1, int(np.searchsorted(explained, variance_share - 1e-9) + 1))
