"""Greedy removal of one of the most alike pair: an order of removal from a matrix of similarities."""

from __future__ import annotations

import numpy as np

from search_spaces.genome import FloatArray, IntArray

_ROUNDING = 1e-9


def removal_order(similarity: FloatArray, strength: FloatArray | None = None) -> IntArray:
    """Return the members of a group ``(g,)`` in the order of their removal, the last survivor last.

    Again and again the most alike pair of those left is taken, and that member removed whose summed similarity to all
    others left is larger: what it says survives in more places. A tie goes against the smaller ``strength``, then
    against the larger index. Equals removing pairs from a sorted list until as many are gone as wanted.

    Args:
        similarity: ``(g, g)`` symmetric, larger = more alike; the diagonal is not looked at.
        strength: ``(g,)``, larger = kept.

    References:
        QSFM, arXiv 2105.06052; which of a pair goes is our reconstruction.
    """
    g = len(similarity)
    order = np.empty(g, np.int64)
    if g == 0:
        return order
    whole = np.array(similarity, np.float64)
    np.fill_diagonal(whole, 0.0)
    sums = whole.sum(axis=1)
    left = whole.copy()
    np.fill_diagonal(left, -np.inf)
    alive = np.ones(g, np.bool_)
    nearest = left.argmax(axis=1)
    closeness = left[np.arange(g), nearest]
    for position in range(g - 1):
        one = int(closeness.argmax())
        other = int(nearest[one])
        gone = _less_wanted(one, other, sums, strength)
        order[position] = gone
        alive[gone] = False
        sums -= whole[gone]
        left[:, gone] = -np.inf
        closeness[gone] = -np.inf
        orphans = np.flatnonzero(alive & (nearest == gone))
        nearest[orphans] = left[orphans].argmax(axis=1)
        closeness[orphans] = left[orphans, nearest[orphans]]
    order[-1] = int(alive.argmax())
    return order


def _less_wanted(one: int, other: int, sums: FloatArray, strength: FloatArray | None) -> int:
    if abs(sums[one] - sums[other]) > _ROUNDING * max(1.0, abs(sums[one])):
        return one if sums[one] > sums[other] else other
    if strength is not None and strength[one] != strength[other]:
        return one if strength[one] < strength[other] else other
    return max(one, other)
