"""How much a search listens to each of its priors: a bandit that follows whose children survive.

Every offspring is guided by one prior, or by none at all. The share that goes unguided is fixed. The rest is divided by
probability matching: each prior gets a least share, and beyond it a share in proportion to the squared mean credit of
its children, in which old generations fade. A child earns one half by surviving and one half by beating its first
parent.

References:
    Thierens 2005, An adaptive pursuit strategy for allocating operator probabilities, Sec. 2 (probability matching).
    Garivier and Moulines 2011, On upper-confidence bound policies for switching bandit problems, Sec. 2 (discounting).
    That a prior is the operator that is chosen, the credit and the square, which tells faster, are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evoprune.search.adaptation import match_probabilities
from evoprune.search.guides import UNGUIDED, Guide, Prior, guide_of, learned_guide_of
from search_spaces.errors import OptionError
from search_spaces.genome import BoolArray, FloatArray, IntArray
from search_spaces.repair import Lattice

#: Part of an equal share that no prior falls below.
_LEAST = 0.2
#: What a generation's counts are worth one generation later.
_DISCOUNT = 0.9
#: Credit and number of the children that every prior begins with, so that the first few decide little.
_FIRST_CREDIT, _FIRST_CHILDREN = 1.0, 4.0


class PriorMixture:
    """Priors, the share of offspring that each guides, and what it knows of their children.

    Args:
        priors: In the order of :attr:`names`; none leaves every offspring unguided.
        lattice: Groups of the search space.
        random_share: Share of offspring in [0, 1] that no prior guides.
        temperature: As for :func:`evoprune.search.guides.guide_of`.

    Attributes:
        guides: The unguided one first, then one per prior.

    Raises:
        OptionError: Two priors have one name, or one does not fit the space.
    """

    def __init__(
        self, priors: Sequence[Prior], lattice: Lattice, *, random_share: float = 0.2, temperature: float = 1.0
    ) -> None:
        self._priors = tuple(priors)
        self._lattice = lattice
        self._temperature = temperature
        self.guides: tuple[Guide, ...] = (
            UNGUIDED,
            *(guide_of(prior, lattice, temperature=temperature) for prior in priors),
        )
        self._first_guides = self.guides
        if len(set(self.names)) != len(self.names):
            raise OptionError(f"every prior needs a name of its own, but got {self.names}; name each once")
        self.fingerprints = {prior.name: prior.fingerprint() for prior in priors}
        self._random_share = random_share if priors else 1.0
        self._credit = np.full(len(priors), _FIRST_CREDIT)
        self._n_children = np.full(len(priors), _FIRST_CHILDREN)
        self._last_children = np.zeros(len(self.guides), np.int64)
        self._last_survivors = np.zeros(len(self.guides), np.int64)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of :attr:`guides`."""
        return tuple(guide.name for guide in self.guides)

    @property
    def orders(self) -> FloatArray | None:
        """``(n, n_genes)`` positions of the priors that have scores beforehand, in order; None where none has."""
        pairs = zip(self._priors, self.guides[1:], strict=True)
        orders = [guide.order for prior, guide in pairs if guide.order is not None and prior.learn is None]
        return np.stack(orders) if orders else None

    @property
    def shares(self) -> FloatArray:
        """Expected share of offspring ``(1 + n_priors,)`` per guide; sums to 1."""
        n_priors = len(self._credit)
        if n_priors == 0:
            return np.ones(1)
        quality = (self._credit / self._n_children) ** 2
        matched = match_probabilities(quality, np.full(n_priors, _LEAST / n_priors), 1 - _LEAST)
        return np.concatenate([[self._random_share], (1 - self._random_share) * matched])

    def draw(self, n: int, *, rng: np.random.Generator) -> IntArray:
        """Return ``(n,)`` indices of :attr:`guides`, drawn by :attr:`shares`."""
        return rng.choice(len(self.guides), size=n, p=self.shares).astype(np.int64)

    def learn(self, drawn: IntArray, is_survivor: BoolArray, is_improved: BoolArray) -> None:
        """Credit the children of one generation.

        Args:
            drawn: ``(n,)`` the guide of each child; negative numbers are passed over.
            is_survivor: ``(n,)`` whether the child is in the next population.
            is_improved: ``(n,)`` whether it is better than its first parent.
        """
        n_guides = len(self.guides)
        known = drawn >= 0
        children = np.bincount(drawn[known], minlength=n_guides)
        survivors = np.bincount(drawn[known & is_survivor], minlength=n_guides)
        improved = np.bincount(drawn[known & is_improved], minlength=n_guides)
        fade = _DISCOUNT
        self._credit = _FIRST_CREDIT + fade * (self._credit - _FIRST_CREDIT) + (survivors + improved)[1:] / 2
        self._n_children = _FIRST_CHILDREN + fade * (self._n_children - _FIRST_CHILDREN) + children[1:]
        self._last_children, self._last_survivors = children.astype(np.int64), survivors.astype(np.int64)

    def look_at(self, genomes: BoolArray, objectives: FloatArray) -> None:
        """Let the priors that learn their scores learn them anew.

        They depend on these evaluations alone, so that a search which was restored has nothing else to keep.

        Args:
            genomes: ``(n, n_genes)``, everything that was judged so far; without any they forget what they have learnt.
            objectives: ``(n,)`` finite, minimised.

        Raises:
            OptionError: What a prior has learnt does not fit the space.
        """
        if not len(genomes):
            self.guides = self._first_guides
            return
        learned = [
            guide
            if prior.learn is None
            else learned_guide_of(prior, genomes, objectives, self._lattice, temperature=self._temperature)
            for prior, guide in zip(self._priors, self._first_guides[1:], strict=True)
        ]
        self.guides = (UNGUIDED, *learned)

    def row(self) -> dict[str, float | int]:
        """Return what the logbook tells of every guide ``NAME``.

        ``share_NAME`` is its share of the next generation's offspring, ``n_children_NAME`` and ``n_survivors_NAME``
        count the judged offspring of the last one. Empty without priors.
        """
        if not len(self._credit):
            return {}
        row: dict[str, float | int] = {}
        figures = zip(
            self.names, self.shares.tolist(), self._last_children.tolist(), self._last_survivors.tolist(), strict=True
        )
        for name, share, n_children, n_survivors in figures:
            row |= {f"share_{name}": share, f"n_children_{name}": n_children, f"n_survivors_{name}": n_survivors}
        return row

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what it has learned, for a checkpoint."""
        return {"prior_credit": self._credit.copy(), "prior_children": self._n_children.copy()}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Go back to what :meth:`arrays` returned."""
        self._credit = np.array(arrays["prior_credit"], np.float64)
        self._n_children = np.array(arrays["prior_children"], np.float64)
