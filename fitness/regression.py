"""The regression behind every compensation: a layer's regressors at sampled positions, and ridge least squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fitness.folding import FoldedLayer


@dataclass(frozen=True)
class LayerTarget:
    """What one layer should produce at its sampled positions.

    Attributes:
        rows: ``(n, out)`` dense outputs, or dense sums where ``partner`` is set.
        positions: ``(batch, n_positions)`` flat output positions.
        output_width: Width of the output map.
        partner: Name of the value that is added to the layer's output, whose drift the layer absorbs.
        is_rectified: Only a ReLU reads it.
    """

    rows: Tensor
    positions: Tensor
    output_width: int
    partner: str | None
    is_rectified: bool


def sample_positions(shape: Sequence[int], n_positions: int, generator: torch.Generator) -> Tensor:
    """Return distinct, sorted flat output positions ``(batch, n)`` of maps of ``shape`` ``(batch, channels, ...)``."""
    batch, total = shape[0], int(np.prod(shape[2:]))
    if total <= n_positions:
        return torch.arange(total).expand(batch, total)
    keys = torch.rand((batch, total), generator=generator)
    return keys.topk(n_positions, dim=1).indices.sort(dim=1).values


def channels_second(layer: FoldedLayer, value: Tensor) -> Tensor:
    """Return what ``layer`` reads or makes as ``(batch, channels, ...)``: linear layers have their features last."""
    return value if layer.kernel else value.movedim(-1, 1)


def gather_outputs(value: Tensor, positions: Tensor) -> Tensor:
    """Return ``(batch * n, channels)`` float32 rows of ``value`` ``(batch, channels, ...)`` at flat ``positions``.

    Always a copy: a value in float32 may be overwritten in place once it has been read.
    """
    if value.ndim == 2:
        return value.to(torch.float32, copy=True)
    batch, channels = value.shape[:2]
    rows = value.movedim(1, -1).reshape(-1, channels)
    offsets = torch.arange(batch, device=value.device).unsqueeze(1) * (rows.shape[0] // batch)
    return rows.index_select(0, (positions + offsets).reshape(-1)).float()


def gather_patches(layer: FoldedLayer, value: Tensor, positions: Tensor, output_width: int) -> Tensor:
    """Return the regressors of a 2-d convolution or linear layer at sampled output positions.

    Args:
        layer: Gives kernel, stride, padding and dilation.
        value: The layer's input, ``(batch, channels, height, width)`` or ``(batch, ..., features)``.
        positions: ``(batch, n)`` flat output positions.
        output_width: Width of the output map; does not matter to a linear layer.

    Returns:
        ``(batch * n, kernel * channels)`` float32; the channel is the fastest dimension.
    """
    if not layer.kernel:
        return gather_outputs(channels_second(layer, value), positions)
    if layer.kernel == (1, 1) and layer.padding == (0, 0) and layer.stride == (1, 1):
        return gather_outputs(value, positions)
    batch, channels, height, width = value.shape
    (pad_y, pad_x), (step_y, step_x), (gap_y, gap_x) = layer.padding, layer.stride, layer.dilation
    padded = value.new_zeros((batch, height + 2 * pad_y, width + 2 * pad_x, channels))
    padded[:, pad_y : pad_y + height, pad_x : pad_x + width] = value.permute(0, 2, 3, 1)
    row = padded.shape[2]
    rows, columns = positions // output_width, positions % output_width
    origin = rows * (step_y * row) + columns * step_x
    origin = origin + torch.arange(batch, device=value.device).unsqueeze(1) * (padded.shape[1] * row)
    taps = torch.arange(layer.kernel[0]).unsqueeze(1) * (gap_y * row) + torch.arange(layer.kernel[1]) * gap_x
    taps = taps.to(value.device)
    index = origin.unsqueeze(-1) + taps.reshape(-1)
    patches = padded.reshape(-1, channels).index_select(0, index.reshape(-1))
    return patches.reshape(-1, taps.numel() * channels).float()


def finite_columns(rows: Tensor) -> Tensor:
    """Return ``rows`` ``(channels, n)`` without the columns that hold a value that is not finite."""
    is_finite = torch.isfinite(rows).all(dim=0)
    return rows if bool(is_finite.all()) else rows[:, is_finite]


def to_rows(weight: Tensor) -> Tensor:
    """Return a weight ``(out, in, ...)`` as ``(out, kernel * in)`` with the input channel fastest."""
    return weight.movedim(1, -1).reshape(weight.shape[0], -1)


def from_rows(rows: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`to_rows` for a weight shaped as ``like``.

    The result is cloned: with one input channel ``contiguous`` would keep strides that convolutions misread.
    """
    moved = rows.reshape(like.shape[0], *like.shape[2:], like.shape[1]).movedim(-1, 1)
    return moved.clone(memory_format=torch.contiguous_format)


class Regression:
    """Ridge regression on fixed regressors, factorised once and solved for any number of residuals.

    With fewer samples than regressors the equivalent system in the samples is solved, which is the smaller one.
    """

    def __init__(self, regressors: Tensor, damping: float, has_bias: bool = True) -> None:
        """Factorise the covariance of ``regressors``, or their sample Gram matrix.

        Args:
            regressors: ``(n, k)`` float32.
            damping: Ridge, relative to the mean variance of a regressor; the bias is not damped.
            has_bias: Whether a bias is solved along; it stays 0 otherwise.
        """
        n, k = regressors.shape
        self.mean = regressors.mean(0) if has_bias else torch.zeros_like(regressors[0])
        self.centred = regressors - self.mean
        self.has_bias = has_bias
        self.in_samples = n < k
        rows = self.centred if self.in_samples else self.centred.T
        gram = (rows @ rows.T).div_(n)
        ridge = damping * float(gram.diagonal().sum()) / k + 1e-12
        gram.diagonal().add_(ridge)
        self.factor, info = torch.linalg.cholesky_ex(gram)
        self.is_well_posed = int(info) == 0 and bool(torch.isfinite(self.factor).all())

    def solve(self, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the update of weights ``(out, k)`` and bias ``(out,)`` that explains ``residual`` ``(n, out)``."""
        mean = residual.mean(0) if self.has_bias else torch.zeros_like(residual[0])
        scaled = (residual - mean) / len(residual)
        if self.in_samples:
            update = torch.cholesky_solve(scaled, self.factor).T @ self.centred
        else:
            update = torch.cholesky_solve(self.centred.T @ scaled, self.factor).T
        return update, mean - update @ self.mean
