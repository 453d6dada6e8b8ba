"""What wavelet aggregation keeps of one channel group: how far a choice of its channels is from all of them.

Every figure is a term of :mod:`fitness.wavelet`, whose formulas are our reconstruction.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fitness.exact_sums import exactly_summable
from fitness.wavelet_maps import GroupMaps
from fitness.wavelet_transform import Coefficients, WaveletOptions, transform
from search_spaces.genome import FloatArray, IntArray
from search_spaces.groups import ChannelGroup

_LOGGER = logging.getLogger(__name__)
#: Added to denominators that may be 0.
EPSILON = 1e-12


@dataclass(frozen=True)
class _QuadraticForm:
    """``w^T S w`` for ``w = m / |K| - 1 / C``: squared distance of a mean over kept channels from that over all."""

    matrix: FloatArray
    row_sums: FloatArray
    total: float

    @classmethod
    def of(cls, vectors: npt.NDArray[Any], norms: FloatArray) -> _QuadraticForm:
        """Return the form of ``vectors`` ``(n_images, c, n)``, each image divided by its entry of ``norms``."""
        n_images, n_channels = vectors.shape[:2]
        matrix = np.zeros((n_channels, n_channels))
        for image, norm in zip(vectors, norms, strict=True):
            matrix += (image @ image.T).astype(np.float64) / norm
        matrix = exactly_summable(matrix / max(n_images, 1))
        return cls(matrix, exactly_summable(matrix.sum(axis=1)), float(matrix.sum()))

    def __call__(self, kept: FloatArray) -> FloatArray:
        """Return the distance ``(n,)`` for 0/1 rows ``kept`` ``(n, c)``."""
        n_channels = kept.shape[1]
        count = np.maximum(kept.sum(axis=1), 1)
        own = ((kept @ self.matrix) * kept).sum(axis=1) / count**2
        cross = (kept @ self.row_sums) / (count * n_channels)
        return np.asarray(np.maximum(own - 2 * cross + self.total / n_channels**2, 0.0))


@dataclass(frozen=True)
class _LargestDetails:
    """Details of every channel, for the rule that keeps the largest: ``(n_images, c, n)``."""

    high: npt.NDArray[np.float32]
    whole: npt.NDArray[np.float32]
    norms: FloatArray

    def __call__(self, kept: FloatArray) -> FloatArray:
        distances = np.zeros(len(kept))
        if not len(self.high):
            return distances
        for index, row in enumerate(kept.astype(np.bool_)):
            own = _largest(self.high[:, row]) if row.any() else np.zeros_like(self.whole)
            distances[index] = np.mean(np.square(own - self.whole, dtype=np.float64).sum(axis=1) / self.norms)
        return distances


@dataclass(frozen=True)
class GroupWavelets:
    """What is kept of one group's feature maps.

    Attributes:
        group: The channel group.
        stage: Index of its stage.
        distances: Terms of the squared distance from the aggregate of all channels, relative to its energy.
        between: ``(size,)`` scatter of the class means of each channel's sub-band energies; zero without labels, and
            where there is not one map per image.
        within: ``(size,)`` scatter within the classes.
        detail_share: ``(size,)`` mean share of a channel's energy that lies in its details; 1 where maps are too small
            to have any, 0 for a map without energy.
        n_images: Images that the figures rest on.
    """

    group: ChannelGroup
    stage: int
    distances: tuple[_QuadraticForm | _LargestDetails, ...]
    between: FloatArray
    within: FloatArray
    detail_share: FloatArray
    n_images: int

    def representation(self, kept: FloatArray) -> FloatArray:
        """Return ``1 - |Q_K - Q_all|^2 / |Q_all|^2`` ``(n,)``, the mean over images; 1 is perfect."""
        distance = np.zeros(len(kept))
        for term in self.distances:
            distance += term(kept)
        return np.asarray(1.0 - distance)

    def discrimination(self, kept: FloatArray) -> FloatArray:
        """Return between-class over within-class scatter ``(n,)``, relative to all channels'; 0 without labels."""
        whole = float(self.between.sum()) / (float(self.within.sum()) + EPSILON)
        if not whole > 0:
            return np.zeros(len(kept))
        return np.asarray((kept @ self.between) / (kept @ self.within + EPSILON) / whole)


def summarise(
    group: ChannelGroup,
    stage: int,
    group_maps: GroupMaps,
    classes: IntArray | None,
    options: WaveletOptions,
) -> GroupWavelets:
    """Return what is kept of ``group``; images whose maps are not finite are left out, and a warning counts them.

    Args:
        group: The channel group.
        stage: Index of its stage.
        group_maps: Of ``n_images`` images; where not every image has one map, which class each has is not known.
        classes: ``(m,)`` of the first ``m >= n_images`` images, or None.
        options: How to decompose and compare.
    """
    maps = group_maps.values
    if classes is not None and not group_maps.is_per_image:
        _LOGGER.warning("%s: classes are not compared, the network has not one feature map per image", group.name)
        classes = None
    finite = np.isfinite(maps).all(axis=(1, 2, 3))
    if not finite.all():
        _LOGGER.warning("%s: %d images left out, their feature maps are not finite", group.name, int((~finite).sum()))
    if classes is not None:
        classes = classes[: len(maps)][finite]
    coefficients = transform(maps[finite], options)
    energies = coefficients.energies  # (n_images, size, 4)
    between, within = _scatter(energies, classes)
    return GroupWavelets(
        group=group,
        stage=stage,
        distances=_distances(coefficients, energies, options),
        between=exactly_summable(between),
        within=exactly_summable(within),
        detail_share=_detail_share(energies, has_details=bool(coefficients.bands)),
        n_images=int(finite.sum()),
    )


def _distances(
    coefficients: Coefficients, energies: FloatArray, options: WaveletOptions
) -> tuple[_QuadraticForm | _LargestDetails, ...]:
    low, high = coefficients.low, coefficients.high
    if options.rule == "energy":
        return (_QuadraticForm.of(energies, _squares(energies.mean(axis=1))),)
    if options.rule == "mean":
        whole = np.concatenate([low, high], axis=-1)
        return (_QuadraticForm.of(whole, _squares(whole.mean(axis=1, dtype=np.float64))),)
    whole_high = _largest(high)
    norms = _squares(low.mean(axis=1, dtype=np.float64)) + _squares(whole_high)
    return (_QuadraticForm.of(low, norms), _LargestDetails(high, whole_high, norms))


def _squares(rows: npt.NDArray[Any]) -> FloatArray:
    return np.square(rows, dtype=np.float64).sum(axis=1) + EPSILON


def _scatter(energies: FloatArray, classes: IntArray | None) -> tuple[FloatArray, FloatArray]:
    """Return between- and within-class scatter per channel, ``(size,)`` each, of ``(n_images, size, 4)``."""
    n_images, size = energies.shape[:2]
    if classes is None or n_images == 0:
        return np.zeros(size), np.zeros(size)
    mean = energies.mean(axis=0)
    between, within = np.zeros(size), np.zeros(size)
    for label in np.unique(classes):
        members = energies[classes == label]
        centre = members.mean(axis=0)
        between += len(members) * np.square(centre - mean).sum(axis=1)
        within += np.square(members - centre).sum(axis=(0, 2))
    return between / n_images, within / n_images


def _detail_share(energies: FloatArray, *, has_details: bool) -> FloatArray:
    total = energies.sum(axis=2)
    if not has_details or not len(energies):
        return np.asarray((total.sum(axis=0) > 0) | (len(energies) == 0), np.float64)
    share = np.divide(energies[:, :, 1:].sum(axis=2), total, out=np.zeros_like(total), where=total > 0)
    return np.asarray(share.mean(axis=0))


def _largest(high: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the largest coefficient by magnitude over channels of ``(n_images, c, n)``; ties go to the first."""
    if not high.size:
        return high[:, 0]
    places = np.abs(high).argmax(axis=1)[:, None]
    return np.take_along_axis(high, places, axis=1)[:, 0]
