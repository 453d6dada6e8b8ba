"""What a criterion tells the search, in the form that operators follow: preferences, never prohibitions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.repair import Lattice

#: Least relative probability of any gene, so that no change is impossible.
FLOOR = 0.1
UNGUIDED_NAME = "unguided"

LearnScores: TypeAlias = Callable[[BoolArray, FloatArray], FloatArray]
"""From judged genomes ``(n, n_genes)`` and their finite objectives ``(n,)``, minimised, to scores ``(n_genes,)``."""


@dataclass(frozen=True)
class Prior:
    """What one criterion says about the genes of a space; each part may be missing, not all.

    Attributes:
        name: How it is called in options and logs.
        scores: ``(n_genes,)`` finite, larger = more wanted, compared within groups only.
        similarity: Per group index a symmetric ``(size, size)`` matrix, larger = more alike; the diagonal is ignored.
        classes: ``(n_genes,)`` numbers of classes of genes that may stand in for each other, compared within groups
            only; a negative number is a class of its own.
        learn: Gives scores from what a search itself has judged, where they are not known beforehand; asked anew after
            every generation.
    """

    name: str
    scores: FloatArray | None = None
    similarity: Mapping[int, FloatArray] = field(default_factory=dict)
    classes: IntArray | None = None
    learn: LearnScores | None = None

    def says_anything(self, lattice: Lattice) -> bool:
        """Return whether any part is there; classes alone speak where one has several members in a group."""
        if self.similarity or self.scores is not None or self.learn is not None:
            return True
        return self.classes is not None and bool(_closeness_of_classes(self.classes, self.name, lattice))

    def fingerprint(self) -> str:
        """Return the identity of the content, BLAKE2b-64."""
        digest = hashlib.blake2b(self.name.encode(), digest_size=8)
        parts = [self.scores, self.classes, *(matrix for _, matrix in sorted(self.similarity.items()))]
        for part in parts:
            digest.update(b"-" if part is None else np.ascontiguousarray(part).tobytes())
        if self.learn is not None:
            digest.update(b"learns")
        return digest.hexdigest()


@dataclass(frozen=True)
class Guide:
    """A prior as operators use it; all numbers are relative probabilities over the floor, or positions.

    Attributes:
        name: Of the prior.
        order: ``(n_genes,)`` in (0, 1), the position within the group, larger = more wanted; None has no order.
        p_drop: ``(n_genes,)`` relative probabilities of 1 -> 0; None are all equal.
        p_revive: ``(n_genes,)`` relative probabilities of 0 -> 1; likewise.
        closeness: Per group index ``(size, size)`` in (0, 1], larger = more alike, 0 on the diagonal; groups of which
            nothing is known are missing.
    """

    name: str = UNGUIDED_NAME
    order: FloatArray | None = None
    p_drop: FloatArray | None = None
    p_revive: FloatArray | None = None
    closeness: Mapping[int, FloatArray] = field(default_factory=dict)


UNGUIDED = Guide()


def guide_of(prior: Prior, lattice: Lattice, *, temperature: float = 1.0) -> Guide:
    """Return ``prior`` as operators use it; one that has still to learn its scores prefers nothing by them.

    Args:
        prior: What a criterion says.
        lattice: The groups.
        temperature: Positive; large values make all genes alike, small ones follow the order strictly.

    Raises:
        OptionError: A part of the prior does not fit the space, or there is none.
    """
    order, p_drop, p_revive = None, None, None
    if prior.scores is not None:
        order = normalise_scores(prior.scores, lattice)
        p_drop, p_revive = mutation_priors(order, temperature=temperature)
    closeness = {}
    if prior.similarity:
        for index, matrix in prior.similarity.items():
            closeness[index] = _closeness_of_pairs(_checked(matrix, index, prior.name, lattice))
    elif prior.classes is not None:
        closeness = _closeness_of_classes(prior.classes, prior.name, lattice)
    if order is None and not closeness and prior.learn is None:
        raise OptionError(
            f"the prior {prior.name!r} must hold scores, similarities or classes, but holds nothing; leave it out"
        )
    return Guide(prior.name, order, p_drop, p_revive, closeness)


def learned_guide_of(
    prior: Prior, genomes: BoolArray, objectives: FloatArray, lattice: Lattice, *, temperature: float = 1.0
) -> Guide:
    """Return ``prior``, which learns its scores, as operators use it after ``genomes`` were judged.

    Genes of equal score share the mean of their positions: those of which nothing is known prefer nothing.

    Args:
        prior: Its ``learn`` is asked.
        genomes: ``(n, n_genes)``, everything that was judged so far.
        objectives: ``(n,)`` finite, minimised.
        lattice: The groups.
        temperature: As for :func:`guide_of`.

    Raises:
        OptionError: What it has learnt does not fit the space.
    """
    assert prior.learn is not None
    scores = prior.learn(genomes, objectives)
    _check_scores(scores, lattice)
    order = np.empty(len(scores))
    for start, size in zip(lattice.starts, lattice.sizes, strict=True):
        _, inverse, counts = np.unique(scores[start : start + size], return_inverse=True, return_counts=True)
        order[start : start + size] = (np.cumsum(counts) - counts / 2)[inverse] / size
    p_drop, p_revive = mutation_priors(order, temperature=temperature)
    return replace(guide_of(prior, lattice, temperature=temperature), order=order, p_drop=p_drop, p_revive=p_revive)


def mutation_priors(
    order: FloatArray, *, temperature: float = 1.0, floor: float = FLOOR
) -> tuple[FloatArray, FloatArray]:
    """Return relative probabilities ``(p_drop, p_revive)``: ``(1-q)^(1/T)`` and ``q^(1/T)``, the largest of each 1.

    Args:
        order: ``(n_genes,)`` q in [0, 1], larger = more wanted.
        temperature: T, positive.
        floor: Least probability, so that no change is impossible.
    """

    def scaled(wanted: FloatArray) -> FloatArray:
        largest = max(float(wanted.max(initial=0.0)), np.finfo(np.float64).tiny)
        return np.maximum((wanted / largest) ** (1 / temperature), floor)

    return scaled(1 - order), scaled(order)


def normalise_scores(scores: FloatArray, lattice: Lattice) -> FloatArray:
    """Return the position of each gene within its group by score, in (0, 1), best near 1; ties keep input order.

    Raises:
        OptionError: ``scores`` is not one finite number per gene.
    """
    _check_scores(scores, lattice)
    positions = positions_in_groups(scores[None], lattice)[0]
    return 1 - (positions + 0.5) / np.repeat(lattice.sizes, lattice.sizes)


def positions_in_groups(preference: FloatArray, lattice: Lattice) -> IntArray:
    """Return each gene's place in its group by ``preference`` ``(n, n_genes)``, 0 = most preferred; ties in order."""
    positions = np.empty(preference.shape, np.int64)
    for start, size in zip(lattice.starts, lattice.sizes, strict=True):
        block = slice(start, start + size)
        order = np.argsort(-preference[:, block], axis=1, kind="stable")
        np.put_along_axis(positions[:, block], order, np.arange(size)[None], axis=1)
    return positions


def nearest_kept(genomes: BoolArray, guide: Guide, lattice: Lattice) -> tuple[FloatArray, IntArray]:
    """Return how close each kept gene's nearest kept sibling is, and which gene that is.

    Args:
        genomes: ``(n, n_genes)``.
        guide: Gives the closeness.
        lattice: The groups.

    Returns:
        ``(n, n_genes)`` closeness in [0, 1], the floor where nothing is known of the group, and ``(n, n_genes)`` genes,
        -1 where there is none. Entries of dropped genes have no meaning. Of equally close siblings the first is taken.
    """
    closest = np.full(genomes.shape, FLOOR)
    sibling = np.full(genomes.shape, -1, np.int64)
    for index, closeness in guide.closeness.items():
        start, size = int(lattice.starts[index]), int(lattice.sizes[index])
        block = slice(start, start + size)
        for row, is_kept in enumerate(genomes[:, block]):  # all rows at once would need a matrix for each
            among_kept = np.where(is_kept, closeness, 0.0)
            nearest = among_kept.argmax(axis=1)
            closest[row, block] = among_kept[np.arange(size), nearest]
            sibling[row, block] = np.where(closest[row, block] > 0, start + nearest, -1)
    return closest, sibling


def _check_scores(scores: FloatArray, lattice: Lattice) -> None:
    n_genes = int(lattice.sizes.sum())
    if scores.shape != (n_genes,) or not np.isfinite(scores).all():
        raise OptionError(
            f"channel scores must be {n_genes} finite numbers, one per gene, but got shape {scores.shape} with "
            f"{int((~np.isfinite(scores)).sum())} that are not finite; check the criterion"
        )


def _checked(matrix: FloatArray, index: int, name: str, lattice: Lattice) -> FloatArray:
    size = int(lattice.sizes[index]) if 0 <= index < len(lattice.sizes) else 0
    if matrix.shape != (size, size) or not np.isfinite(matrix).all():
        raise OptionError(
            f"similarities of group {index} must be a finite matrix ({size}, {size}), but {name!r} gave shape "
            f"{matrix.shape}; check the criterion"
        )
    return matrix


def _closeness_of_pairs(similarity: FloatArray) -> FloatArray:
    """Return ``1 / (1 + r / size)`` with ``r`` the rank of the pair within its group, 0 = most alike.

    Ranks make criteria of all units comparable; about as many pairs as there are channels come out above one half.
    """
    size = len(similarity)
    rows, columns = np.triu_indices(size, 1)
    values = (similarity[rows, columns] + similarity[columns, rows]) / 2
    rank = np.empty(len(values))
    rank[np.argsort(-values, kind="stable")] = np.arange(len(values))
    closeness = np.zeros((size, size))
    closeness[rows, columns] = closeness[columns, rows] = 1 / (1 + rank / size)
    return closeness


def _closeness_of_classes(classes: IntArray, name: str, lattice: Lattice) -> dict[int, FloatArray]:
    """Return 1 for genes of one class and the floor for others, for groups in which a class has several members."""
    if classes.shape != (int(lattice.sizes.sum()),):
        raise OptionError(
            f"classes must be {int(lattice.sizes.sum())} numbers, one per gene, but {name!r} gave shape "
            f"{classes.shape}; check the criterion"
        )
    found = {}
    for index, (start, size) in enumerate(zip(lattice.starts, lattice.sizes, strict=True)):
        members = classes[start : start + size]
        is_same = (members[:, None] == members[None]) & (members[:, None] >= 0)
        np.fill_diagonal(is_same, val=False)
        if is_same.any():
            closeness = np.where(is_same, 1.0, FLOOR)
            np.fill_diagonal(closeness, 0.0)
            found[index] = closeness
    return found
