"""Greedy backward elimination: in which order a group can lose its genes, and what each loss costs.

Optimal brain surgeon for sets: with the inverse of the damped covariance the cheapest gene is found and removed
exactly, and the inverse, as well as the optimally updated weights, are downdated instead of computed again.

References:
    Hassibi 1993, Second order derivatives for network pruning: optimal brain surgeon (generalised to blocks of
    columns).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from fitness.layer_error import SINGLE_PRECISION_ABOVE
from search_spaces.genome import FloatArray, IntArray

#: One gene is removed at a time once at most this many are left, and ``n // this`` at a time before.
GENES_PER_SWEEP = 64


@dataclass(frozen=True)
class Elimination:
    """How one group loses its genes.

    Attributes:
        order: ``(size,)`` gene indices, first removed first.
        error: ``(size,)`` error after each removal, relative to the layers' output energies and summed over layers.
    """

    order: IntArray
    error: FloatArray


class LayerElimination(Protocol):
    """One layer's view of the elimination; genes are counted within the group."""

    def costs(self, left: IntArray) -> FloatArray:
        """Return what removing each of the genes ``left`` alone would add to the error."""

    def remove(self, genes: IntArray) -> FloatArray:
        """Remove ``genes`` one after another and return what each adds to the error."""


class PlainElimination:
    """The error without update: ``1/2 u^T G u``."""

    def __init__(self, gram: FloatArray) -> None:
        """Keep ``gram`` ``(size, size)``, already relative to the layer's energy."""
        self.gram = gram
        self.slope = np.zeros(len(gram))

    def costs(self, left: IntArray) -> FloatArray:
        """Return the exact marginals of ``left``."""
        return np.asarray(self.slope[left] + self.gram[left, left] / 2)

    def remove(self, genes: IntArray) -> FloatArray:
        """Remove ``genes`` and return their costs."""
        added = np.zeros(len(genes))
        for index, gene in enumerate(genes):
            added[index] = self.slope[gene] + self.gram[gene, gene] / 2
            self.slope += self.gram[gene]
        return added


class UpdatedElimination:
    """The error after the optimal update of the weights that remain.

    Holds the inverse of the damped covariance in float64, or float32 above
    :data:`fitness.layer_error.SINGLE_PRECISION_ABOVE` columns: two square matrices of that size at a time. Both are
    computed afresh whenever half of the columns are gone, so that rounding cannot build up.
    """

    def __init__(self, covariance: Tensor, rows: Tensor, columns: IntArray, scale: float, damping: float) -> None:
        """Factorise.

        Args:
            covariance: ``(k, k)``.
            rows: ``(out, k)`` weights.
            columns: ``(size, m)`` columns of each gene of the group.
            scale: Factor on all errors.
            damping: Ridge relative to the mean diagonal of the covariance.
        """
        self.covariance = covariance
        self.rows = rows
        self.ridge = damping * float(covariance.diagonal().mean()) + 1e-30
        self.scale = scale
        self.columns = torch.from_numpy(columns)
        self.alive = torch.ones(len(covariance), dtype=torch.bool)
        self._refresh()

    def _refresh(self) -> None:
        """Compute inverse and updated weights of the columns that are alive."""
        self.index = self.alive.nonzero().squeeze(1)
        self.place = torch.full((len(self.alive),), -1, dtype=torch.int64)
        self.place[self.index] = torch.arange(len(self.index))
        dtype = torch.float32 if len(self.index) > SINGLE_PRECISION_ABOVE else torch.float64
        gone = (~self.alive).nonzero().squeeze(1)
        system = self.covariance[self.index][:, self.index].to(dtype)
        system.diagonal().add_(self.ridge)
        self.weights = self.rows[:, self.index].T.contiguous().to(dtype)  # (k, out)
        factor = _factor(system)
        del system
        if len(gone):
            moment = self.covariance[self.index][:, gone].to(dtype) @ self.rows[:, gone].to(dtype).T
            self.weights += torch.cholesky_solve(moment, factor)
        self.inverse = torch.cholesky_inverse(factor)
        self.n_at_refresh = len(self.index)

    def costs(self, left: IntArray) -> FloatArray:
        """Return ``1/2 tr(W_i ([H^-1]_ii)^-1 W_i^T)`` of each gene of ``left``."""
        places = self.place[self.columns[torch.from_numpy(left)]]
        blocks = self.inverse[places.unsqueeze(2), places.unsqueeze(1)]
        parts = self.weights[places]  # (n, m, out)
        whitened = torch.linalg.solve_triangular(_factor(blocks), parts, upper=False)
        return np.asarray(whitened.square().sum(dim=(1, 2)).double().numpy() * (self.scale / 2))

    def remove(self, genes: IntArray) -> FloatArray:
        """Remove ``genes`` and return their costs."""
        columns = self.columns[torch.from_numpy(genes)]
        places = self.place[columns.flatten()]
        block = self.inverse[places][:, places]
        factor = _factor(block)
        along = torch.linalg.solve_triangular(factor, self.inverse[places], upper=False)
        whitened = torch.linalg.solve_triangular(factor, self.weights[places], upper=False)
        self.alive[columns.flatten()] = False
        n_left = int(self.alive.sum())
        if n_left:
            if n_left <= self.n_at_refresh // 2:
                self._refresh()
            else:
                self.weights.addmm_(along.T, whitened, alpha=-1)
                self.inverse.addmm_(along.T, along, alpha=-1)
                if n_left <= 0.875 * len(self.index):
                    self._compact()
        added = whitened.square().sum(dim=1).reshape(columns.shape).sum(dim=1)
        return np.asarray(added.double().numpy() * (self.scale / 2))

    def _compact(self) -> None:
        """Leave out the columns that are gone."""
        places = self.alive[self.index].nonzero().squeeze(1)
        self.inverse = self.inverse[places][:, places].contiguous()
        self.weights = self.weights[places]
        self.index = self.index[places]
        self.place = torch.full((len(self.alive),), -1, dtype=torch.int64)
        self.place[self.index] = torch.arange(len(self.index))


def _factor(matrix: Tensor) -> Tensor:
    """Return the Cholesky factor of ``(..., m, m)``; what rounding made indefinite is damped further until it works."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    ridge = 1e-7
    while bool(info.any()) and ridge < 1:
        ridge *= 10
        damped = matrix + ridge * torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1).abs())
        factor, info = torch.linalg.cholesky_ex(damped)
    return factor


def eliminate(start: int, size: int, layers: Sequence[LayerElimination]) -> Elimination:
    """Return the elimination of the ``size`` genes from ``start``; ties go to the lower index.

    While more than :data:`GENES_PER_SWEEP` genes are left, the cheapest ``n // GENES_PER_SWEEP`` go before costs are
    computed again; their errors are exact nevertheless.
    """
    left = np.arange(size, dtype=np.int64)
    order: list[IntArray] = []
    added: list[FloatArray] = []
    while len(left):
        costs = np.zeros(len(left))
        for layer in layers:
            costs += layer.costs(left)
        n_removed = max(1, len(left) // GENES_PER_SWEEP)
        cheapest = left[np.argsort(costs, kind="stable")[:n_removed]]
        step = np.zeros(len(cheapest))
        for layer in layers:
            step += layer.remove(cheapest)
        order.append(cheapest)
        added.append(step)
        left = left[~np.isin(left, cheapest)]
    return Elimination(start + np.concatenate(order), np.cumsum(np.concatenate(added)))
