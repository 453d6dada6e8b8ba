"""What a search remembers of all its generations: which genomes it asked for, and what the judged ones were worth."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from evoprune.search.messages import EvaluationRequest
from evoprune.search.state import Arrays, pack_digests, pack_genomes, unpack_digests, unpack_genomes
from evoprune.search.surrogate import LinearSurrogate
from search_spaces.genome import BoolArray, FloatArray, genome_digest


class Memory:
    """Every genome that was evaluated at any rung, and the judged ones with their objectives.

    Args:
        n_genes: Length of a genome.
    """

    def __init__(self, n_genes: int) -> None:
        self._n_genes = n_genes
        self._seen: dict[str, None] = {}  # digests, in order of arrival
        self._seen_by_elite: dict[str, None] = {}
        self._genomes = np.empty((0, n_genes), np.bool_)
        self._objectives = np.empty(0)

    def add_answered(self, request: EvaluationRequest) -> None:
        """Remember that the genomes of ``request`` were evaluated."""
        self._seen.update(dict.fromkeys(request.digests))
        if request.role == "elite":
            self._seen_by_elite.update(dict.fromkeys(request.digests))

    def add_judged(self, genomes: BoolArray, objectives: FloatArray) -> None:
        """Remember the ``objectives`` ``(n,)`` of the judged ``genomes`` ``(n, n_genes)``; failed ones are left out."""
        is_finite = np.isfinite(objectives)
        self._genomes = np.concatenate([self._genomes, genomes[is_finite]])
        self._objectives = np.concatenate([self._objectives, objectives[is_finite]])

    @property
    def judged(self) -> tuple[BoolArray, FloatArray]:
        """Genomes ``(n, n_genes)`` that the judge has seen, and their objectives ``(n,)``, finite."""
        return self._genomes, self._objectives

    def is_new(self, genomes: BoolArray, taken: set[str]) -> BoolArray:
        """Return which of ``genomes`` ``(n, n_genes)`` were never evaluated, the first of equal ones alone; ``(n,)``.

        Args:
            genomes: Feasible genomes.
            taken: Digests of genomes that are no longer wanted either; those of ``genomes`` are added.
        """
        is_new = np.zeros(len(genomes), np.bool_)
        for row, genome in enumerate(genomes):
            digest = genome_digest(genome)
            is_new[row] = digest not in self._seen and digest not in taken
            taken.add(digest)
        return is_new

    def unseen_by_elite(self, genomes: BoolArray) -> BoolArray:
        """Return those of ``genomes`` ``(n, n_genes)`` that the elite rung has not seen."""
        return genomes[[genome_digest(genome) not in self._seen_by_elite for genome in genomes]]

    def expected_objectives(self, genomes: BoolArray) -> FloatArray:
        """Return what a linear model of all that was judged expects of ``genomes`` ``(n, n_genes)``; ``(n,)``."""
        return LinearSurrogate(self._genomes, self._objectives).predict(genomes)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return all of it, for a checkpoint."""
        return {
            "judged_genomes": pack_genomes(self._genomes),
            "judged_objectives": self._objectives.copy(),
            "seen": pack_digests(self._seen),
            "elite_seen": pack_digests(self._seen_by_elite),
        }

    def restore(self, arrays: Arrays) -> None:
        """Go back to what :meth:`arrays` returned."""
        self._genomes = unpack_genomes(arrays["judged_genomes"], self._n_genes)
        self._objectives = np.array(arrays["judged_objectives"], np.float64)
        self._seen = dict.fromkeys(unpack_digests(arrays["seen"]))
        self._seen_by_elite = dict.fromkeys(unpack_digests(arrays["elite_seen"]))
