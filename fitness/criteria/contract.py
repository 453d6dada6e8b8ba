"""What a criterion says about the channels of a network, and the protocol that every criterion meets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fitness.criteria.inputs import CriterionInput
from search_spaces.errors import GenomeShapeError, ObjectiveValueError
from search_spaces.genome import BoolArray, FloatArray, IntArray

#: What a criterion may offer; each is the name of a field of :class:`ChannelKnowledge`.
ROLES = ("scores", "similarity", "classes", "family", "widths")
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class MaskFamily:
    """Masks over one dial, from keeping most to keeping least.

    Attributes:
        dials: ``(t,)`` values of the dial.
        masks: ``(t, n_genes)``, True = keep; a mask may leave a group empty, repair then keeps the best of it.
    """

    dials: FloatArray
    masks: BoolArray


@dataclass(frozen=True)
class ChannelKnowledge:
    """What one criterion knows of one network. Anything but ``sizes`` may be absent, but not all of it.

    A gene stands for all channels that are coupled into it and is judged as a whole. Genes of residual blocks carry the
    largest score, class 0 and no similarity: criteria judge channels.

    Attributes:
        sizes: ``(n_groups,)`` genes per group of the search space, blocks included.
        scores: ``(n_genes,)`` float64, larger = more wanted; comparable within a group.
        is_global: ``scores`` are comparable over the whole network too.
        similarity: Group index, ascending, to ``(g, g)`` float64, symmetric, in [0, 1], larger = more alike; a diagonal
            of ones. What is given in another order is sorted: random draws go by it.
        strength: ``(n_genes,)`` which of two equally redundant members of a pair goes: the one of smaller strength.
        classes: ``(n_genes,)`` int64 class within the group, counted from 0; members may stand in for each other.
        family: Masks over a dial.
        widths: ``(n_groups,)`` share of the group's channels, in (0, 1], that should be kept.
        merge: ``(n_genes,)`` the gene of the same group whose consumers' weights take over when the gene goes; itself
            where there is none.
    """

    sizes: tuple[int, ...]
    scores: FloatArray | None = None
    is_global: bool = False
    similarity: Mapping[int, FloatArray] = field(default_factory=dict)
    strength: FloatArray | None = None
    classes: IntArray | None = None
    family: MaskFamily | None = None
    widths: FloatArray | None = None
    merge: IntArray | None = None

    def __post_init__(self) -> None:
        """Sort the similarities by group, and check shapes and ranges.

        Raises:
            GenomeShapeError: An array does not fit ``sizes``, or nothing is offered.
            ObjectiveValueError: A value is not finite or out of its range.
        """
        if not self.roles:
            raise GenomeShapeError(f"a criterion must offer one of {', '.join(ROLES)}, but this one offers nothing")
        object.__setattr__(self, "similarity", dict(sorted(self.similarity.items())))
        n_genes, n_groups = sum(self.sizes), len(self.sizes)
        for name, n in (("scores", n_genes), ("strength", n_genes), ("classes", n_genes), ("merge", n_genes)):
            _check_vector(name, getattr(self, name), n)
        _check_vector("widths", self.widths, n_groups)
        for index, matrix in self.similarity.items():
            if not 0 <= index < n_groups:
                raise GenomeShapeError(f"similarity must be given by group index in [0, {n_groups}), but got {index}")
            _check_similarity(index, matrix, self.sizes[index])
        if self.family is not None:
            expected = (len(self.family.dials), n_genes)
            if self.family.masks.shape != expected or self.family.masks.dtype != np.bool_:
                raise GenomeShapeError(
                    f"the masks of a family must be boolean of shape {expected}, one row per dial, but got "
                    f"{self.family.masks.shape} of {self.family.masks.dtype}"
                )
        if self.widths is not None and not ((self.widths > 0) & (self.widths <= 1)).all():
            raise ObjectiveValueError(f"widths must be shares in (0, 1], but got {self.widths.tolist()}")
        if self.classes is not None and (self.classes < 0).any():
            raise ObjectiveValueError("classes must be counted from 0 within each group, but got a negative one")
        if self.merge is not None:
            groups = np.repeat(np.arange(n_groups), self.sizes)
            inside = (self.merge >= 0) & (self.merge < n_genes)
            if not inside.all() or (groups[self.merge] != groups).any():
                raise GenomeShapeError("merge must name a gene of the same group for every gene, but does not")

    @property
    def roles(self) -> frozenset[str]:
        """Those of :data:`ROLES` that are offered."""
        return frozenset(name for name in ROLES if getattr(self, name) is not None and not self._is_empty(name))

    def _is_empty(self, name: str) -> bool:
        return name == "similarity" and not self.similarity

    @property
    def n_genes(self) -> int:
        """Length of a genome."""
        return sum(self.sizes)

    @property
    def starts(self) -> IntArray:
        """``(n_groups,)`` index of the first gene of each group."""
        return np.cumsum([0, *self.sizes[:-1]]) if self.sizes else np.empty(0, np.int64)


class Criterion(Protocol):
    """A published way to tell which channels matter. Stateless; options are its attributes."""

    @property
    def name(self) -> str:
        """The name that the command line knows it by."""

    @property
    def summary(self) -> str:
        """One line for people."""

    @property
    def roles(self) -> frozenset[str]:
        """What :meth:`compute` offers, a subset of :data:`ROLES`."""

    @property
    def reference(self) -> str:
        """Where it is published, and what of it is our reading."""

    def compute(self, data: CriterionInput) -> ChannelKnowledge:
        """Return what the criterion says about the network in ``data``; equal input, equal bits."""


def _check_vector(name: str, values: npt.NDArray[np.generic] | None, n: int) -> None:
    if values is None:
        return
    if values.shape != (n,):
        raise GenomeShapeError(f"{name} must have shape ({n},) in this search space, but got {values.shape}")
    if not np.isfinite(values).all():
        raise ObjectiveValueError(
            f"{name} must be finite, but {int((~np.isfinite(values)).sum())} of {n} are not; look for activations or "
            "weights of the dense network that are not finite"
        )


def _check_similarity(index: int, matrix: FloatArray, size: int) -> None:
    if matrix.shape != (size, size):
        raise GenomeShapeError(f"similarity of group {index} must have shape {(size, size)}, but got {matrix.shape}")
    if not np.isfinite(matrix).all() or matrix.min(initial=0) < -_TOLERANCE or matrix.max(initial=0) > 1 + _TOLERANCE:
        raise ObjectiveValueError(
            f"similarity of group {index} must lie in [0, 1], but spans [{matrix.min()}, {matrix.max()}]; look for "
            "activations or weights of the dense network that are not finite"
        )
    if not np.allclose(matrix, matrix.T, rtol=0, atol=_TOLERANCE):
        raise ObjectiveValueError(f"similarity of group {index} must be symmetric, but is not")
