"""Information in feature maps: entropy and rank, per channel and per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fitness.criteria.contract import ChannelKnowledge
from fitness.criteria.inputs import CriterionInput
from search_spaces.errors import check_rules
from search_spaces.genome import FloatArray

_CONSTANT = 1e-6
_RANK_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Information:
    """Information concentration: the harmonic mean of normalised entropy and normalised rank of feature maps.

    Entropy is that of a histogram of a channel's values over images and places between their least and largest, divided
    by the logarithm of the number of bins. Rank is that of a map as a matrix, the mean over images, divided by the
    shorter side. Both lie in [0, 1] and are 0 for a constant channel. Channel values from evaluated genomes, the
    paper's second half, are :func:`fitness.criteria.shapley.shapley_values`.

    Attributes:
        n_bins: Of the histogram.
        n_entropy_images: Images behind the histogram, the first ones.
        n_rank_images: Images behind the rank, the first ones.
    """

    n_bins: int = 32
    n_entropy_images: int = 64
    n_rank_images: int = 16

    name = "info"
    summary = "entropy and rank of feature maps: scores and widths; Shapley values from evaluated genomes beside it"
    roles = frozenset({"scores", "widths"})
    reference = (
        "Information-theoretic pruning, arXiv 2408.16772 (abstract only): how entropy and rank are fused, scores of "
        "single channels by them, and the mean over coupled views are our reconstruction"
    )

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            OptionError: One is too small.
        """
        check_rules(
            [
                ("n_bins >= 2", self.n_bins >= 2, self.n_bins),
                ("n_entropy_images >= 1", self.n_entropy_images >= 1, self.n_entropy_images),
                ("n_rank_images >= 1", self.n_rank_images >= 1, self.n_rank_images),
            ]
        )

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores and widths.

        * scores: the concentration of each channel, larger = more wanted; comparable within a group.
        * widths: the concentration of each layer (from its mean entropy and mean rank) over that of the richest layer:
          where little is said, more may go. 1 where no layer reads the group.
        """
        entropies = self._entropies(data)
        ranks = self._ranks(data)
        scores, concentration = {}, {}
        for index, entropy in entropies.items():
            scores[index] = harmonic_mean(entropy, ranks[index])
            concentration[index] = float(
                harmonic_mean(entropy.mean(keepdims=True), ranks[index].mean(keepdims=True))[0]
            )
        widths = np.ones(len(data.sizes))
        richest = max(concentration.values(), default=0.0)
        for index, value in concentration.items():
            if richest > 0:
                widths[index] = max(value / richest, 1 / data.sizes[index])
        return ChannelKnowledge(data.sizes, scores=data.gather_scores(scores), widths=widths)

    def _entropies(self, data: CriterionInput) -> dict[int, FloatArray]:
        """Return ``(g,)`` per group; two passes, the first for the ranges."""
        low: dict[tuple[int, int], Tensor] = {}
        high: dict[tuple[int, int], Tensor] = {}
        for batch in data.batches("read", self.n_entropy_images):
            for key, rows in _channel_rows(batch):
                least, most = rows.amin(dim=2), rows.amax(dim=2)
                low[key] = torch.minimum(low[key], least) if key in low else least
                high[key] = torch.maximum(high[key], most) if key in high else most
        counts: dict[tuple[int, int], Tensor] = {}
        for batch in data.batches("read", self.n_entropy_images):
            for key, rows in _channel_rows(batch):
                found = histogram(rows, low[key], high[key], self.n_bins)
                counts[key] = counts[key] + found if key in counts else found
        return _mean_over_views(
            {key: normalised_entropy(count.cpu().numpy()).mean(axis=1) for key, count in counts.items()}
        )

    def _ranks(self, data: CriterionInput) -> dict[int, FloatArray]:
        sums: dict[tuple[int, int], FloatArray] = {}
        for batch in data.batches("read", self.n_rank_images):
            for index, views in batch.items():
                for view, maps in enumerate(views):
                    share = map_ranks(maps).double().mean(dim=2).sum(dim=0) / min(maps.shape[-2:])
                    found = share.cpu().numpy() / min(self.n_rank_images, len(data.inputs))
                    sums[index, view] = sums[index, view] + found if (index, view) in sums else found
        return _mean_over_views(sums)


def histogram(rows: Tensor, low: Tensor, high: Tensor, n_bins: int) -> Tensor:
    """Return counts ``(g, m, n_bins)`` of ``rows`` ``(g, m, n)`` in equal bins from ``low`` to ``high`` ``(g, m)``.

    A constant row falls into one bin, as does one whose range is rounding.
    """
    span = high - low
    varies = span > _CONSTANT * torch.maximum(high.abs(), low.abs())
    scale = torch.where(varies, n_bins / torch.where(varies, span, 1.0), 0.0)
    bins = ((rows - low.unsqueeze(2)) * scale.unsqueeze(2)).long().clamp(0, n_bins - 1)
    counts = torch.zeros(*rows.shape[:2], n_bins, dtype=torch.int64, device=rows.device)
    return counts.scatter_add_(2, bins, torch.ones_like(bins))


def normalised_entropy(counts: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> FloatArray:
    """Return the entropy of histograms ``(..., n_bins)`` over the logarithm of their bins, in [0, 1]."""
    shares = counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.asarray(-(shares * logs).sum(axis=-1) / math.log(counts.shape[-1]))


def map_ranks(maps: Tensor) -> Tensor:
    """Return the rank of each matrix of ``maps`` ``(..., height, width)``.

    Singular values above 1e-5 of the largest count.
    """
    values = torch.linalg.svdvals(maps.double())
    largest = values.amax(dim=-1, keepdim=True)
    return ((values > _RANK_TOLERANCE * largest) & (values > 0)).sum(dim=-1)


def harmonic_mean(one: FloatArray, other: FloatArray) -> FloatArray:
    """Return ``2 a b / (a + b)`` element by element, 0 where both are 0."""
    total = one + other
    return np.divide(2 * one * other, total, out=np.zeros_like(total), where=total > 0)


def _channel_rows(batch: dict[int, list[Tensor]]) -> Sequence[tuple[tuple[int, int], Tensor]]:
    """Return ``((group, view), (g, m, n))``."""
    return [
        ((index, view), maps.permute(1, 2, 0, 3, 4).flatten(2))
        for index, views in batch.items()
        for view, maps in enumerate(views)
    ]


def _mean_over_views(of_view: dict[tuple[int, int], FloatArray]) -> dict[int, FloatArray]:
    grouped: dict[int, list[FloatArray]] = {}
    for (index, _), values in of_view.items():
        grouped.setdefault(index, []).append(values)
    return {index: np.asarray(np.mean(values, axis=0)) for index, values in grouped.items()}
