"""The layer problem of the two-step fitness: what removing inputs costs a layer, before and after the optimal update.

With input patches ``X`` ``(k, P)``, weights ``W`` ``(out, k)`` and ``H = X X^T / P``, the squared error of weights
``W'`` is the quadratic form ``1/2 tr((W' - W) H (W' - W)^T)``, exactly, since the error is quadratic in the weights.

References:
    Dong 2017, Learning to prune deep neural networks via layer-wise optimal brain surgeon; "A novel channel pruning
    method for deep neural network compression", arXiv 1805.11394, 2018 (formulas are our reading).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Above so many remaining columns a factorisation is done in float32.
SINGLE_PRECISION_ABOVE = 2048


def masked_error(covariance: Tensor, rows: Tensor, dropped: Tensor) -> float:
    """Return ``1/2 tr(W_R H_RR W_R^T)``: the error of dropping inputs and changing nothing else.

    Args:
        covariance: ``(k, k)``.
        rows: ``(out, k)`` weights.
        dropped: ``(n,)`` column indices.
    """
    part = rows[:, dropped].double()
    return float((part @ covariance[dropped][:, dropped].double() * part).sum() / 2)


def optimal_update(
    covariance: Tensor, rows: Tensor, kept: Tensor, dropped: Tensor, damping: float
) -> tuple[Tensor, float] | None:
    """Return the change of the remaining weights that makes up best for dropped inputs, and the error that it leaves.

    The change is ``W_R H_RK (H_KK + ridge I)^-1``, by Cholesky. The error is that of the damped change, hence at most
    :func:`masked_error` and at least the least-squares residual.

    Args:
        covariance: ``(k, k)``.
        rows: ``(out, k)`` weights.
        kept: ``(n_kept,)`` column indices.
        dropped: ``(k - n_kept,)`` column indices.
        damping: Ridge relative to the mean diagonal of ``H_KK``.

    Returns:
        ``((out, n_kept), error)``, or ``None`` where the system is not positive definite in the precision used.
    """
    before = masked_error(covariance, rows, dropped)
    if len(kept) == 0 or len(dropped) == 0:
        return rows.new_zeros((len(rows), len(kept))), before
    dtype = torch.float32 if len(kept) > SINGLE_PRECISION_ABOVE else torch.float64
    system = covariance[kept][:, kept].to(dtype)
    moment = covariance[kept][:, dropped].to(dtype) @ rows[:, dropped].to(dtype).T
    ridge = damping * float(system.diagonal().mean()) + torch.finfo(dtype).tiny
    system.diagonal().add_(ridge)
    factor, info = torch.linalg.cholesky_ex(system)
    if int(info) != 0:
        return None
    change = torch.cholesky_solve(moment, factor)
    gain = float((moment * change).sum()) + ridge * float(change.square().sum())
    if not torch.isfinite(change).all():
        return None
    return change.T, min(max(before - gain / 2, 0.0), before)
