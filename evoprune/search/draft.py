"""A generation in the making."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from search_spaces.genome import BoolArray, FloatArray, IntArray

_NONE = np.empty(0, np.int64)
_COLUMNS = ("genomes", "rates", "guides", "parent_objectives", "mutations", "crossovers")


@dataclass
class Draft:
    """Offspring and immigrants that are not judged yet, one row each, and how they came about.

    Attributes:
        genomes: ``(n, n_genes)``.
        rates: ``(n,)`` the mutation rate that each carries.
        guides: ``(n,)`` index of the prior that each followed, -1 for others.
        parent_objectives: ``(n,)`` objective of the first parent, ``-inf`` without one.
        mutations: ``(n,)`` index of the mutation that made each, -1 where none did.
        crossovers: ``(n,)`` index of the crossover, -1 for children of one parent.
        n_immigrants: So many of the last rows have no parents, and are not screened.
        made: Like ``mutations`` and ``crossovers``, with a row for every child, also those left out since.
        is_restart: Whether they replace the population instead of joining it.
        n_screened: Offspring that the first rung saw.
        n_failed: Judged genomes that failed.
        n_elites: Genomes that the elite rung saw.
    """

    genomes: BoolArray
    rates: FloatArray
    guides: IntArray
    parent_objectives: FloatArray
    mutations: IntArray
    crossovers: IntArray
    n_immigrants: int = 0
    made: tuple[IntArray, IntArray] = (_NONE, _NONE)
    is_restart: bool = False
    n_screened: int = 0
    n_failed: int = 0
    n_elites: int = 0

    @classmethod
    def fresh(cls, genomes: BoolArray, rates: FloatArray) -> Draft:
        """Return individuals that have no parents."""
        n = len(genomes)
        none = np.full(n, -1, np.int64)
        return cls(genomes, rates, none, np.full(n, -np.inf), none.copy(), none.copy())

    def take(self, rows: IntArray | BoolArray) -> Draft:
        """Return the individuals in ``rows``, or where ``rows`` is True."""
        return replace(self, **{name: getattr(self, name)[rows] for name in _COLUMNS})

    @classmethod
    def join(cls, drafts: Sequence[Draft]) -> Draft:
        """Return the individuals of all ``drafts`` (at least one), in order."""
        columns: dict[str, Any] = {
            name: np.concatenate([getattr(draft, name) for draft in drafts]) for name in _COLUMNS
        }
        return cls(**columns)
