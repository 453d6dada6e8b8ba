"""Figures rounded such that sums of them are exact, so that a result cannot depend on the order of summation."""

from __future__ import annotations

import numpy as np

from search_spaces.genome import FloatArray


def exactly_summable(values: FloatArray) -> FloatArray:
    """Return ``values`` rounded such that float64 sums of any of its entries are exact, each taken at most once.

    Entries become multiples of one power of two, about ``2 ** -51`` of the sum of all magnitudes. A matrix product with
    a 0/1 matrix then gives the same bits for one row as for many.
    """
    total = float(np.abs(values).sum())
    if not 0 < total < np.inf:
        return values
    quantum = 2.0 ** (int(np.ceil(np.log2(total))) - 51)
    return np.asarray(np.rint(values / quantum) * quantum)
