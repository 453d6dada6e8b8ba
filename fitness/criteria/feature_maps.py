"""Criteria that compare or measure feature maps: QSFM and HRank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fitness.criteria.contract import ChannelKnowledge
from fitness.criteria.inputs import CriterionInput
from search_spaces.errors import OptionError, check_rules
from search_spaces.genome import FloatArray

_RANGE = 1.0
_C1, _C2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2
_CAP_DB = 60.0
#: Entries of one batch of pair matrices.
_MAX_ENTRIES = 1 << 24


@dataclass(frozen=True)
class FeatureMapSimilarity:
    """How alike the feature maps of two channels are, the mean over images and over the values that layers read.

    Maps are as consumers see them, min-max scaled to [0, 1] per image and value; with L = 1

    * ``SSIM = (2 mu_x mu_y + c1)(2 sigma_xy + c2) / ((mu_x^2 + mu_y^2 + c1)(sigma_x^2 + sigma_y^2 + c2))`` of whole
      maps, ``c1 = (0.01 L)^2``, ``c2 = (0.03 L)^2``, biased moments; given as ``(1 + SSIM) / 2``, of one order;
    * ``PSNR = 10 log10(L^2 / MSE)``, at most 60 dB; given as a share of 60 dB.

    The mean magnitude of a channel's maps is the strength that decides between equals.

    Attributes:
        measure: ``ssim`` or ``psnr``.
    """

    measure: Literal["ssim", "psnr"] = "ssim"

    roles = frozenset({"similarity"})
    reference = (
        "QSFM, arXiv 2105.06052; its text was not readable: SSIM and PSNR are the standard formulas, their means over "
        "images and coupled layers, the scaling and the greedy removal are our reconstruction"
    )

    def __post_init__(self) -> None:
        """Check the measure.

        Raises:
            OptionError: There is no such measure.
        """
        if self.measure not in ("ssim", "psnr"):
            raise OptionError(f"measure must be ssim or psnr, but got {self.measure!r}")

    @property
    def name(self) -> str:
        """``qsfm-ssim`` or ``qsfm-psnr``."""
        return f"qsfm-{self.measure}"

    @property
    def summary(self) -> str:
        """One line for people."""
        return f"{self.measure.upper()} between feature maps: greedy removal of one of the most alike pair"

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return similarities of all groups that a layer reads."""
        compare = _ssim if self.measure == "ssim" else _psnr
        sums: dict[int, Tensor] = {}
        magnitude: dict[int, Tensor] = {}
        count: dict[int, int] = {}
        for batch in data.batches():
            for index, views in batch.items():
                for view in views:
                    maps = _scaled(view.flatten(2))
                    step = max(1, _MAX_ENTRIES // maps.shape[1] ** 2)
                    for part in maps.split(step):
                        total = compare(part)
                        sums[index] = sums[index] + total if index in sums else total
                    power = view.abs().mean(dim=(2, 3, 4)).sum(dim=0, dtype=torch.float64)
                    magnitude[index] = magnitude[index] + power if index in magnitude else power
                    count[index] = count.get(index, 0) + len(maps)
        similarity = {index: _symmetric(total / count[index]) for index, total in sums.items()}
        strength = data.gather_scores({index: total / count[index] for index, total in magnitude.items()})
        return ChannelKnowledge(data.sizes, similarity=similarity, strength=strength)


@dataclass(frozen=True)
class MapRank:
    """Mean rank of a channel's feature maps: maps of low rank carry little information.

    Maps are as consumers see them; the rank is that of float32 singular values above ``max(height, width)`` times their
    precision times the largest. The mean over the channels of a gene and over the values that layers read is our
    reading; a map of one pixel has rank 0 or 1.

    Attributes:
        n_images: Images used, the first ones: ranks hardly vary with them, and they are dear.
    """

    n_images: int = 32

    name = "hrank"
    summary = "mean rank of a channel's feature maps"
    roles = frozenset({"scores"})
    reference = (
        "Lin 2020, HRank: filter pruning using high-rank feature map, Sec. 3.2; the mean over coupled layers is our "
        "reading"
    )

    def __post_init__(self) -> None:
        """Check the number of images.

        Raises:
            OptionError: It is below 1.
        """
        check_rules([("n_images >= 1", self.n_images >= 1, self.n_images)])

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores, larger = more wanted, comparable within a group; 0 for groups that no layer reads."""
        sums: dict[int, Tensor] = {}
        count: dict[int, int] = {}
        for batch in data.batches(n_images=self.n_images):
            for index, views in batch.items():
                for view in views:
                    ranks = torch.linalg.matrix_rank(view).double().mean(dim=2).sum(dim=0)
                    sums[index] = sums[index] + ranks if index in sums else ranks
                    count[index] = count.get(index, 0) + len(view)
        scores = {index: total / count[index] for index, total in sums.items()}
        return ChannelKnowledge(data.sizes, scores=data.gather_scores(scores))


def _scaled(maps: Tensor) -> Tensor:
    """Return maps ``(b, g, m, h * w)`` scaled to [0, 1] per image, as ``(b, g, p)``; constant images become 0."""
    flat = maps.flatten(2)
    low = flat.amin(dim=(1, 2), keepdim=True)
    span = flat.amax(dim=(1, 2), keepdim=True) - low
    return torch.where(span > 0, (flat - low) / span.clamp(min=torch.finfo(flat.dtype).tiny), torch.zeros_like(flat))


def _ssim(maps: Tensor) -> Tensor:
    """Return the sum over images of ``(1 + SSIM) / 2`` of all pairs, ``(g, g)``, of maps ``(b, g, p)``."""
    mean = maps.mean(dim=2)
    centred = maps - mean[:, :, None]
    covariance = torch.bmm(centred, centred.transpose(1, 2)).div_(maps.shape[2])
    variance = covariance.diagonal(dim1=1, dim2=2).clone()
    below = (variance[:, :, None] + variance[:, None]).add_(_C2)
    similarity = covariance.mul_(2).add_(_C2).div_(below)
    square = mean.square()
    torch.add(square[:, :, None], square[:, None] + _C1, out=below)
    similarity.div_(below)
    similarity.mul_((2 * mean[:, :, None] * mean[:, None]).add_(_C1))
    return (len(maps) + similarity.sum(dim=0, dtype=torch.float64)) / 2


def _psnr(maps: Tensor) -> Tensor:
    """Return the sum over images of ``PSNR / 60 dB`` of all pairs, ``(g, g)``, of maps ``(b, g, p)`` in [0, 1]."""
    power = maps.square().mean(dim=2)
    error = torch.baddbmm(power[:, :, None] + power[:, None], maps, maps.transpose(1, 2), alpha=-2.0 / maps.shape[2])
    error.clamp_(min=_RANGE**2 * 10 ** (-_CAP_DB / 10)).div_(_RANGE**2).log10_()
    return error.sum(dim=0, dtype=torch.float64) * (-10 / _CAP_DB)


def _symmetric(matrix: Tensor) -> FloatArray:
    """Return the matrix without the asymmetry and the excess of rounding, and with ones on its diagonal."""
    whole = ((matrix + matrix.T) / 2).clamp(0.0, 1.0)
    whole.fill_diagonal_(1.0)
    result: FloatArray = whole.cpu().numpy()
    return result
