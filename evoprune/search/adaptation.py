"""Which operator is tried how often: shares that follow success."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from search_spaces.genome import FloatArray, IntArray

_MEMORY = 0.85  # what a generation's counts are worth one generation later
_FLOOR = 0.3  # part of the trials that is shared out by the given weights, whatever succeeded
_PRIOR = 4.0  # trials of average success that every name begins with


def match_probabilities(merit: FloatArray, least: FloatArray, rest: float) -> FloatArray:
    """Return shares ``(n,)``: to each its ``least``, and of the ``rest`` a part in proportion to its merit.

    Args:
        merit: ``(n,)``, not negative and not all 0.
        least: ``(n,)`` shares that are given whatever the merit.
        rest: What they leave of 1.

    References:
        Thierens 2005, An adaptive pursuit strategy for allocating operator probabilities, Sec. 2.
    """
    return least + rest * merit / merit.sum()


class SuccessShares:
    """Shares trials among names in proportion to how often they succeeded lately (:func:`match_probabilities`).

    The fading memory and the prior are ours.

    Args:
        weights: Relative frequency of every name, positive; what the shares are before anything is known.
        is_adaptive: Whether the shares follow success; they stay as they are given otherwise.
    """

    def __init__(self, weights: Mapping[str, float], *, is_adaptive: bool = True) -> None:
        self.names: tuple[str, ...] = tuple(weights)
        self._weights = np.array([weights[name] for name in self.names], np.float64)
        self._is_adaptive = is_adaptive
        self._n_tried = np.zeros(len(self.names))
        self._n_succeeded = np.zeros(len(self.names))

    def shares(self, names: Sequence[str] | None = None) -> FloatArray:
        """Return the share of the trials that each name gets, in order; they sum to 1.

        Args:
            names: Only these take part, the others get 0; where none of them is known, all do.
        """
        weights = self._weights / self._weights.sum()
        if names is not None and set(names) & set(self.names):
            weights = weights * np.isin(self.names, list(names))
        weights = weights / weights.sum()
        if not self._is_adaptive or not self._n_tried.any():
            return weights
        average = self._n_succeeded.sum() / self._n_tried.sum()
        quality = (self._n_succeeded + _PRIOR * average) / (self._n_tried + _PRIOR)
        matched = weights * quality
        if not matched.sum() > 0:
            return weights
        return match_probabilities(matched, _FLOOR * weights, 1 - _FLOOR)

    def learn(self, tried: IntArray, succeeded: IntArray) -> None:
        """Let one generation's trials count.

        Args:
            tried: ``(n,)`` index of the name that each trial used; negative ones used none.
            succeeded: ``(m,)`` the same of those trials that were a success.
        """
        n_names = len(self.names)
        self._n_tried = _MEMORY * self._n_tried + np.bincount(tried[tried >= 0], minlength=n_names)
        self._n_succeeded = _MEMORY * self._n_succeeded + np.bincount(succeeded[succeeded >= 0], minlength=n_names)

    def row(self, prefix: str) -> dict[str, float]:
        """Return the share of each name under ``<prefix>_<name>``, for a logbook."""
        return {f"{prefix}_{name}": share for name, share in zip(self.names, self.shares().tolist(), strict=True)}

    def state(self) -> dict[str, Any]:
        """Return what was learnt, as JSON values."""
        return {"tried": self._n_tried.tolist(), "succeeded": self._n_succeeded.tolist()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what :meth:`state` returned."""
        self._n_tried = np.array(state["tried"], np.float64)
        self._n_succeeded = np.array(state["succeeded"], np.float64)
