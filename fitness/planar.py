"""Every convolution as an ordinary planar one, so that one way of gathering input patches serves all layer types.

A one-dimensional convolution gains a dimension of size 1; the depth of a three-dimensional one moves into its channels;
a transposed one becomes an ordinary one over its input with zeros stuffed between the samples. Linear layers stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fitness.folding import FoldedLayer
from fitness.regression import gather_patches, sample_positions, to_rows
from search_spaces.genome import IntArray


@dataclass(frozen=True)
class PlanarLayer:
    """One layer seen as a planar convolution or a linear layer.

    Attributes:
        layer: With planar weight ``(out, in / groups, kernel, kernel)``, or the linear layer itself.
        source: The layer as the network has it.
        column_genes: ``(k,)`` gene of each input weight of one output, in the order of ``to_rows``.
    """

    layer: FoldedLayer
    source: FoldedLayer
    column_genes: IntArray

    @property
    def groups(self) -> int:
        """Number of convolution groups."""
        return self.source.record.groups

    @property
    def rows(self) -> Tensor:
        """``(groups, out / groups, k)`` weights; the input channel is the fastest column."""
        rows = to_rows(self.layer.weight)
        return rows.reshape(self.groups, rows.shape[0] // self.groups, -1)

    def regressors(self, value: Tensor, n_positions: int, generator: torch.Generator) -> Tensor:
        """Return ``(groups, n, k)`` float32 patches of the layer's input ``value`` at sampled output positions."""
        if not self.layer.kernel:
            rows = value.reshape(-1, value.shape[-1])
            wanted = len(value) * n_positions
            if len(rows) > wanted:
                rows = rows[torch.randperm(len(rows), generator=generator)[:wanted].sort().values]
            return rows.float().unsqueeze(0)
        value = self._planar(value)
        size = [
            (side + 2 * pad - gap * (kernel - 1) - 1) // step + 1
            for side, pad, gap, kernel, step in zip(
                value.shape[2:],
                self.layer.padding,
                self.layer.dilation,
                self.layer.kernel,
                self.layer.stride,
                strict=True,
            )
        ]
        positions = sample_positions((len(value), 1, *size), n_positions, generator)
        patches = gather_patches(self.layer, value, positions, size[1])
        n_taps = self.layer.kernel[0] * self.layer.kernel[1]
        return patches.reshape(len(patches), n_taps, self.groups, -1).permute(2, 0, 1, 3).flatten(2)

    def _planar(self, value: Tensor) -> Tensor:
        kernel, stride = self.source.kernel, self.source.stride
        if self.source.record.is_transposed:
            value = _stuffed(value, stride)
        if len(kernel) == 1:
            return value.unsqueeze(2)
        if len(kernel) == 3:
            plain = 1 if self.source.record.is_transposed else stride[0]
            padding, dilation = _ordinary_padding(self.source)[0], self.source.dilation[0]
            return _depth_as_channels(value, padding, dilation, kernel[0], plain)
        return value


def planar(layer: FoldedLayer) -> PlanarLayer | None:
    """Return ``layer`` as a planar one, or ``None`` where its input is not sliced or no planar form exists."""
    if layer.in_genes is None or not 0 <= len(layer.kernel) <= 3:
        return None
    kernel, genes, weight = layer.kernel, layer.in_genes, layer.weight
    stride, padding, dilation = layer.stride, layer.padding, layer.dilation
    if layer.record.is_transposed:
        groups = layer.record.groups
        genes = genes[: len(genes) // groups] if len(genes) == len(weight) else genes
        weight = weight.reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
        weight = weight.flip(list(range(2, weight.ndim)))
        padding, stride = _ordinary_padding(layer), (1,) * len(kernel)
        if min(padding, default=0) < 0:
            return None
    if len(kernel) == 1:
        weight = weight.unsqueeze(2)
        stride, padding, dilation = (1, *stride), (0, *padding), (1, *dilation)
    elif len(kernel) == 3:
        weight = weight.flatten(1, 2)
        genes = np.repeat(genes, kernel[0])
        stride, padding, dilation = stride[1:], padding[1:], dilation[1:]
    view = replace(layer, weight=weight, in_genes=genes, stride=stride, padding=padding, dilation=dilation)
    n_taps = int(np.prod(weight.shape[2:]))
    return PlanarLayer(view, layer, np.tile(genes, n_taps))


def _ordinary_padding(layer: FoldedLayer) -> tuple[int, ...]:
    if not layer.record.is_transposed:
        return layer.padding
    sides = zip(layer.dilation, layer.kernel, layer.padding, strict=True)
    return tuple(gap * (kernel - 1) - pad for gap, kernel, pad in sides)


def _stuffed(value: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return ``value`` with ``stride - 1`` zeros between neighbours along each spatial dimension."""
    if all(step == 1 for step in stride):
        return value
    sides = [(side - 1) * step + 1 for side, step in zip(value.shape[2:], stride, strict=True)]
    result = value.new_zeros((*value.shape[:2], *sides))
    places: tuple[Any, ...] = (..., *[slice(None, None, step) for step in stride])
    result[places] = value
    return result


def _depth_as_channels(value: Tensor, padding: int, dilation: int, kernel: int, stride: int) -> Tensor:
    """Return ``(batch * depth_out, channels * kernel, height, width)`` of ``(batch, channels, depth, ...)``."""
    value = torch.nn.functional.pad(value, (0, 0, 0, 0, padding, padding))
    n_out = (value.shape[2] - dilation * (kernel - 1) - 1) // stride + 1
    index = torch.arange(n_out).unsqueeze(1) * stride + torch.arange(kernel) * dilation
    windows = value[:, :, index]  # (batch, channels, depth_out, kernel, height, width)
    return windows.permute(0, 2, 1, 3, 4, 5).flatten(2, 3).flatten(0, 1)
