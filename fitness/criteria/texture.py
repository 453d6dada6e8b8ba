"""DTC and CDP: what the spatial skeleton of a filter says about it.

Both were published for a skeleton ``I`` ``(F, K, K)`` that is trained along with the weights. A trained network without
one gets the surrogate ``I[f, i, j] = sum_c |W[f, c, i, j]| / C``, scaled to mean 1 per layer (our reconstruction).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fitness.criteria.contract import ChannelKnowledge, MaskFamily
from fitness.criteria.inputs import CriterionInput
from search_spaces.errors import check_rules
from search_spaces.genome import FloatArray

_EPSILON = 1e-7
_DEAD = -1.0


def skeletons(data: CriterionInput, index: int) -> list[tuple[Tensor, Tensor]]:
    """Return, per producer of group ``index``, its genes' skeletons ``(g, m, taps)`` and the layer's ``(F, taps)``."""
    found = []
    for name, weight in zip(data.producers(index), data.filters(index), strict=True):
        whole = data.layer_filters(name).abs().mean(dim=1)
        scale = whole.mean().clamp(min=torch.finfo(torch.float64).tiny)
        found.append((weight.abs().mean(dim=2) / scale, whole / scale))
    return found


@dataclass(frozen=True)
class DynamicThreshold:
    """The dial at which the dynamic threshold container lets a channel go, and the masks along the dial.

    With ``n_f = |I_f|_1`` the container of filter f is ``tau_f = theta mean(n) / n_f``, and a filter stays while one
    entry of its skeleton exceeds it: while ``theta < max I_f n_f / mean(n)``, which is the score. One theta for the
    whole network gives every layer a width of its own. The mean over coupled producers, and over the channels of one
    gene, is our reading.

    Attributes:
        n_dials: Masks of the family; dials lie between scores, such that they keep from 95 % to 5 % of the genes.
    """

    n_dials: int = 19

    name = "dtc"
    summary = "dynamic threshold container on filter skeletons: masks over one dial for all layers"
    roles = frozenset({"family", "scores"})
    reference = (
        "CDP and DTC, AI Communications 2023, doi 10.3233/AIC-230046, as coded; the skeleton's surrogate and the "
        "sweep over the dial are our reconstruction"
    )

    def __post_init__(self) -> None:
        """Check the number of masks.

        Raises:
            OptionError: It is below 1.
        """
        check_rules([("n_dials >= 1", self.n_dials >= 1, self.n_dials)])

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores, larger = more wanted and comparable over the network, and masks; no image is looked at."""
        of_group = {}
        for index, _ in data.groups:
            parts = []
            for skeleton, whole in skeletons(data, index):
                mean = whole.sum(dim=1).mean().clamp(min=torch.finfo(torch.float64).tiny)
                parts.append((skeleton.amax(dim=2) * skeleton.sum(dim=2) / mean).mean(dim=1))
            of_group[index] = torch.stack(parts).mean(dim=0)
        scores = data.gather_scores(of_group)
        n_channels = data.space.n_genes - len(data.space.blocks)
        dials = _dials(scores[:n_channels], self.n_dials)
        masks = scores[None] > dials[:, None]
        masks[:, n_channels:] = True
        return ChannelKnowledge(data.sizes, scores=scores, is_global=True, family=MaskFamily(dials, masks))


def _dials(scores: FloatArray, n: int) -> FloatArray:
    """Return ``n`` dials halfway between neighbours in the order of ``scores``, at shares from 5 % to 95 % of them."""
    if len(scores) < 2:
        return np.zeros(n)
    shares = np.linspace(0.05, 0.95, n) if n > 1 else np.array([0.5])
    above = np.clip(np.rint(shares * len(scores)).astype(np.int64), 1, len(scores) - 1)
    ordered = np.sort(scores)
    return np.asarray((ordered[above - 1] + ordered[above]) / 2)


@dataclass(frozen=True)
class TextureAngle:
    """Angle between a filter's skeleton and the mean skeleton of its layer: an ordinary texture is redundant.

    ``score = 1 - s_f = arccos(<I_f, mean I> / (|I_f| |mean I| + 1e-7)) / pi``. A kernel of one place has no texture:
    such producers are left out, and a group of none others is worth 0 throughout. A filter of zeros has no angle; the
    published formula calls it unusual, here it is worth -1 if all producers of the gene are zero, and a zero producer
    beside others adds nothing. The mean over coupled producers is our reading.
    """

    name = "cdp"
    summary = "angle between a filter's skeleton and the mean of its layer: ordinary texture = redundant"
    roles = frozenset({"scores"})
    reference = (
        "CDP and DTC, AI Communications 2023, doi 10.3233/AIC-230046, angular texture similarity as coded; the "
        "skeleton's surrogate and its use as a score are our reconstruction"
    )

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return scores, larger = more wanted, comparable within a group; no image is looked at."""
        of_group = {}
        for index, group in data.groups:
            angles = torch.zeros(group.size, dtype=torch.float64, device=data.device)
            is_dead = torch.ones(group.size, dtype=torch.bool, device=data.device)
            n_textured = 0
            for skeleton, whole in skeletons(data, index):
                is_dead &= (skeleton == 0).all(dim=2).all(dim=1)
                if skeleton.shape[2] > 1:
                    angles += _angles(skeleton, whole.mean(dim=0)).mean(dim=1)
                    n_textured += 1
            angles /= max(n_textured, 1)
            of_group[index] = torch.where(is_dead, torch.full_like(angles, _DEAD), angles)
        return ChannelKnowledge(data.sizes, scores=data.gather_scores(of_group))


def _angles(skeleton: Tensor, mean: Tensor) -> Tensor:
    """Return the angle to ``mean`` as a share of pi, ``(g, m)``; 0 for a filter of zeros."""
    lengths = skeleton.norm(dim=2)
    cosine = (skeleton @ mean) / (lengths * mean.norm() + _EPSILON)
    angle = torch.arccos(cosine.clamp(-1, 1)) / torch.pi
    return torch.where(lengths > 0, angle, torch.zeros_like(angle))
