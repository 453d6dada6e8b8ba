"""Locality-sensitive hashing: channels whose maps fall into one bucket may stand in for each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fitness.criteria.contract import ChannelKnowledge
from fitness.criteria.inputs import CriterionInput
from search_spaces.errors import check_rules
from search_spaces.genome import FloatArray, IntArray

_CONSTANT = 1e-10


@dataclass(frozen=True)
class HashBuckets:
    """Buckets of channels by the signs of their maps' projections on random hyperplanes.

    HASTE hashes patches at inference, where it merges a bucket into its mean; here the whole maps of the calibration
    images are hashed once, and a bucket's members stand for each other in every genome. Maps are centred first: behind
    a ReLU all maps point into the same orthant. Two maps with correlation ``rho`` share a bucket with probability
    ``(1 - arccos(rho) / pi) ** n_hyperplanes``. All values that layers read a group from are hashed as one long map.

    Attributes:
        n_hyperplanes: Bits of a hash; more of them, smaller buckets.
        n_images: Images whose maps are hashed, the first ones.
    """

    n_hyperplanes: int = 8
    n_images: int = 64

    name = "lsh"
    summary = "hash buckets of feature maps, and who takes over for whom; no pair is ever compared"
    roles = frozenset({"classes"})
    reference = (
        "HASTE, arXiv 2309.17211 (abstract and summaries); whole maps instead of patches, centred, and a kept member "
        "instead of the bucket's mean are ours"
    )

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            OptionError: One is not positive, or a hash has more bits than a whole number holds.
        """
        check_rules(
            [
                ("1 <= n_hyperplanes <= 62", 1 <= self.n_hyperplanes <= 62, self.n_hyperplanes),
                ("n_images >= 1", self.n_images >= 1, self.n_images),
            ]
        )

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return a class per bucket, and as ``merge`` the member of the bucket that is nearest to its mean.

        For that member itself it is the second nearest; itself in a bucket of one.
        """
        classes = np.zeros(data.space.n_genes, np.int64)
        merge = np.arange(data.space.n_genes, dtype=np.int64)
        for index, projected in self._projections(data).items():
            group = data.space.groups[index]
            genes = slice(group.start, group.stop)
            classes[genes] = buckets(projected)
            merge[genes] = group.start + representatives(projected, classes[genes])
        return ChannelKnowledge(data.sizes, classes=classes, merge=merge)

    def _projections(self, data: CriterionInput) -> dict[int, FloatArray]:
        """Return ``(g, n_hyperplanes)`` projections of centred maps per group; zero for constant maps."""
        generator = data.torch_generator(self.name)
        sums: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor, Tensor, int]] = {}
        for batch in data.batches("read", self.n_images):
            for index in sorted(batch):
                for view, maps in enumerate(batch[index]):
                    rows = maps.double().transpose(0, 1).flatten(1)
                    planes = torch.randn(
                        (rows.shape[1], self.n_hyperplanes), generator=generator, dtype=torch.float64
                    ).to(rows.device)
                    added = (rows @ planes, planes.sum(dim=0), rows.sum(dim=1), rows.square().sum(dim=1))
                    held = sums.get((index, view))
                    joined = added if held is None else tuple(a + b for a, b in zip(added, held[:4], strict=True))
                    n = rows.shape[1] + (0 if held is None else held[4])
                    sums[index, view] = (joined[0], joined[1], joined[2], joined[3], n)
        found: dict[int, FloatArray] = {}
        for (index, _), (raw, plane_sum, total, square, n) in sums.items():
            centred = raw - torch.outer(total / n, plane_sum)
            varies = square / n - (total / n).square() > _CONSTANT * square / n
            part = torch.where(varies[:, None], centred, 0.0).cpu().numpy()
            found[index] = found[index] + part if index in found else part
        return found


def buckets(projected: FloatArray) -> IntArray:
    """Return the bucket ``(g,)`` of each row of ``projected`` ``(g, n_hyperplanes)``, counted from 0.

    Rows with equal signs share one; a projection of 0 counts as negative. Numbers follow the hashes, not the rows.
    """
    bits = (projected > 0).astype(np.int64) @ (1 << np.arange(projected.shape[1], dtype=np.int64))
    return np.unique(bits, return_inverse=True)[1].reshape(-1).astype(np.int64)


def representatives(projected: FloatArray, classes: IntArray) -> IntArray:
    """Return, per row, the member of its class that is nearest to the class's mean, ``(g,)``; for that one the next.

    Distances are those of the projections, which keep those of the maps on average. Ties go to the lower index.
    """
    result = np.arange(len(classes), dtype=np.int64)
    for name in np.unique(classes):
        members = np.flatnonzero(classes == name)
        if len(members) < 2:
            continue
        distance = np.square(projected[members] - projected[members].mean(axis=0)).sum(axis=1)
        nearest = members[np.argsort(distance, kind="stable")]
        result[members] = nearest[0]
        result[nearest[0]] = nearest[1]
    return result
