"""EXP: channels whose filters fall into the same expectation classes may stand in for each other.

Published on kernel slices: every ``K x K`` slice of a filter is removed or kept. Here it is lifted to whole channels,
which are what a genome removes: the classes of its slices describe a filter, filters of like description form a class,
and the random removal acts on those. The lift is our reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from fitness.criteria.contract import ChannelKnowledge
from fitness.criteria.inputs import CriterionInput
from search_spaces.errors import OptionError
from search_spaces.genome import FloatArray, IntArray

#: Weight of the unquantised distance, which decides between pairs whose quantised distances are equal.
_TIE_BREAK = 1e-6


@dataclass(frozen=True)
class ExpectationClasses:
    """Classes of channels by the expectation scaling factor of their slices.

    For every slice ``Psi = sum of its weights`` and ``S = round(N (sigmoid(2 Psi / max|Psi|) - 1/2))``, the maximum
    over the layer (published without the magnitude, which is undefined where all sums are negative). Two filters are as
    alike as ``1 - mean |S_i - S_j| / (max S - min S)``; coupled producers count alike. Filters are joined by average
    linkage up to ``threshold`` times the mean distance inside the group.

    Attributes:
        way: ``B``: the classes of the whole layer decide. ``A``: batch-norm scales come first, as a score beside the
            classes: ``1 - (n - 1)/n (1 - |gamma| / max|gamma|)`` for a class of ``n`` (our form of the published walk
            by ascending scale); a channel alone in its class is worth 1 whatever its scale.
        n_levels: N; larger = more levels.
        threshold: Of the linkage; 0 joins equals alone.
    """

    way: Literal["A", "B"] = "B"
    n_levels: int = 13
    threshold: float = 0.9

    reference = (
        "EXP, PeerJ CS 9:e1564 (2023), similarity index and random removal; the lift from kernel slices to channels "
        "is our reconstruction"
    )

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            OptionError: There is no such way, or a number is out of range.
        """
        if self.way not in ("A", "B") or self.n_levels < 1 or not self.threshold >= 0:
            raise OptionError(
                f"way must be A or B, `n_levels >= 1` and `threshold >= 0` must hold, but got way={self.way!r}, "
                f"n_levels={self.n_levels}, threshold={self.threshold}"
            )

    @property
    def name(self) -> str:
        """``exp`` (way B) or ``exp-bn`` (way A)."""
        return "exp" if self.way == "B" else "exp-bn"

    @property
    def summary(self) -> str:
        """One line for people."""
        order = "" if self.way == "B" else ", small batch-norm scales first"
        return f"classes by expectation scaling factor, random removal inside a class{order}"

    @property
    def roles(self) -> frozenset[str]:
        """Classes and similarities; scores in way A."""
        return frozenset({"classes", "similarity"} | ({"scores"} if self.way == "A" else set()))

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return classes and similarities, and scores in way A; no image is looked at."""
        classes = np.zeros(data.space.n_genes, np.int64)
        similarity: dict[int, FloatArray] = {}
        scores: dict[int, FloatArray] = {}
        for index, group in data.groups:
            distance, fine = self._distances(data, index)
            similarity[index] = (1.0 - distance).cpu().numpy()
            found = self._classes((distance + _TIE_BREAK * fine).cpu().numpy())
            classes[group.start : group.stop] = found
            if self.way == "A":
                scores[index] = _way_a_scores(found, _mean_scale(data, index, group.size))
        return ChannelKnowledge(
            data.sizes,
            scores=data.gather_scores(scores) if self.way == "A" else None,
            similarity=similarity,
            classes=classes,
        )

    def levels(self, sums: Tensor, largest: Tensor) -> Tensor:
        """Return S of slices with the given sums, where ``largest`` is the layer's largest magnitude of a sum."""
        scaled = sums / largest.clamp(min=torch.finfo(torch.float64).tiny)
        return torch.round(self.n_levels * (torch.sigmoid(2 * scaled) - 0.5))

    def _distances(self, data: CriterionInput, index: int) -> tuple[Tensor, Tensor]:
        """Return the distances of levels in [0, 1] and of unquantised sums, ``(g, g)`` each; means over producers."""
        by_level, by_sum = [], []
        for name, weight in zip(data.producers(index), data.filters(index), strict=True):
            whole = data.layer_filters(name).sum(dim=2)
            largest = whole.abs().max()
            all_levels = self.levels(whole, largest)
            span = (all_levels.max() - all_levels.min()).clamp(min=1.0)
            sums = weight.sum(dim=3).flatten(1)
            levels = self.levels(sums, largest)
            n_slices = sums.shape[1]
            by_level.append(torch.cdist(levels, levels, p=1) / (n_slices * span))
            unit = largest.clamp(min=torch.finfo(torch.float64).tiny)
            by_sum.append(torch.cdist(sums / unit, sums / unit, p=1) / (2 * n_slices))
        return torch.stack(by_level).mean(dim=0), torch.stack(by_sum).mean(dim=0)

    def _classes(self, distance: FloatArray) -> IntArray:
        pairs = squareform(distance, checks=False)
        if not len(pairs):
            return np.zeros(len(distance), np.int64)
        joined = fcluster(linkage(pairs, "average"), self.threshold * pairs.mean(), "distance")
        return np.asarray(np.unique(joined, return_inverse=True)[1], np.int64)


def _mean_scale(data: CriterionInput, index: int, size: int) -> FloatArray:
    gammas = [gamma.abs().mean(dim=1) for gamma in data.gammas(index)]
    return torch.stack(gammas).mean(dim=0).cpu().numpy() if gammas else np.ones(size)


def _way_a_scores(classes: IntArray, scale: FloatArray) -> FloatArray:
    population = np.bincount(classes)[classes]
    largest = scale.max(initial=0.0)
    share = scale / largest if largest > 0 else np.zeros_like(scale)
    return np.asarray(1.0 - (population - 1) / population * (1.0 - share))
